"""The presets of the chapter esam as files: valid JSON, the same as the presets by name, and options that `vfmkd report esam --config FILE` takes."""
import json

import pytest

from vfmkd_nb.core.config import ConfigError, parse_flags
from vfmkd_nb.core.reports import parameter_model
from vfmkd_nb.esam.data import PRESETS, EsamConfig, load_config, notebook_config


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_files(root, preset):
    path = root / "configs" / f"esam_{preset}.json"
    options = json.loads(path.read_text())
    assert EsamConfig.load(path) == load_config(preset) == load_config(str(path))
    model = parameter_model("esam")
    assert notebook_config(model.parse(parse_flags(model, ["--config", str(path)])).model_dump()) == load_config(preset)
    assert parse_flags(model, ["--config", str(path), "--epochs", "7"])["epochs"] == "7"
    with pytest.raises(ConfigError, match="did you mean 'student'"):
        EsamConfig.parse({**options, "studnet": "tiny"})


def test_a_file_of_the_document(root, tmp_path):
    """The document's sections are accepted by name of the preset option; an unknown key is refused with the nearest one."""
    (tmp_path / "theirs.json").write_text(json.dumps({"model": {"student_variant": "vits"}, "training": {"learning_rate": 1e-4, "batch_size": 8}}))
    config = notebook_config({"preset": str(tmp_path / "theirs.json")})
    assert (config.student, config.lr, config.batch_size) == ("vits", 1e-4, 8)
    (tmp_path / "wrong.json").write_text(json.dumps({"training": {"learnig_rate": 1e-4}}))
    with pytest.raises(ConfigError, match="training.learning_rate"):
        load_config(str(tmp_path / "wrong.json"))
