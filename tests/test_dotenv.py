"""The `.env` file: its format is python-dotenv's, its place is beside the script or above, and it yields."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heimdall_tracking import ConfigurationError, Settings, _dotenv, _environment
from support.helpers import PATIENCE_S, clean_environment, write

SHOW = """
import json
from heimdall_tracking import settings
print(json.dumps({name: str(value) for name, value in settings.model_dump().items()}))
"""


@pytest.fixture
def run_file(tmp_path):
    """Run a script in a file, from some folder, and return what it prints."""

    def run(code: str, script: Path = tmp_path / "train.py", cwd: Path = tmp_path, **variables: object):
        write(script, code.encode())
        variables = {"HEIMDALL_DIR": tmp_path / "heimdall", "HOME": tmp_path} | variables
        return subprocess.run(
            [sys.executable, script],
            cwd=cwd,
            env=clean_environment(**variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    return run


def theirs(text: str) -> dict[str, str]:
    """What python-dotenv reads where the process's variables win."""
    from dotenv.main import DotEnv

    found = DotEnv(None, stream=io.StringIO(text), override=False).dict()
    return {name: value for name, value in found.items() if value is not None}


SIGNS = ["A", "B", "x", "n", "é", "=", "'", '"', "\\", "#", "$", "}", " ", "\t", "\n", "\r\n", "\r", "\x0b"]
PARTS = ["export ", "export", "${A}", "${B:-d}", "${", ":-", "\\n", '\\"', " #", "A=1\n", 'B="x\ny"\n']
PIECES = st.sampled_from(SIGNS + PARTS)


@given(st.lists(PIECES, max_size=25).map("".join))
@example('A=1\nexport B=\'two # words\' # comment\nC="a\\n\\"b\\"\nc"\nD=${A}-${NONE:-d}\n')
@example("\ufeffA=1\nA = # nothing\nB=#something\n'C'=x\nD\n=E\nF=\"open\nG=2\n")
@example('A="x" junk\nB=2\nA=${B}${HOME}\n')
def test_every_text_is_read_as_python_dotenv_reads_it(text):
    assert _dotenv.values(text, os.environ)[0] == theirs(text)


@given(st.text(max_size=60))
def test_no_text_makes_the_reader_fail(text):
    values, lines, _ = _dotenv.values(text, {})
    assert values.keys() == lines.keys() == theirs(text).keys()


def test_lines_are_counted_where_names_begin():
    text = "\n# comment\nA=1\n\nB='x\ny'\n\n  C=3\nbad line =\nD\n"
    values, lines, unreadable = _dotenv.values(text, {})
    assert values == {"A": "1", "B": "x\ny", "C": "3"}
    assert (lines, unreadable) == ({"A": 3, "B": 5, "C": 8}, [9])


def test_no_import_of_python_dotenv_is_needed(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=mine\n")
    code = "import sys\nfrom heimdall_tracking import settings\n"
    code += "print(settings.mlflow_experiment_name, {'dotenv', 'pydantic'} & set(sys.modules))"
    assert run_file(code).stdout == "mine set()\n"


@pytest.mark.parametrize("place", ["scripts/deep", "scripts", "."])
@pytest.mark.parametrize("cwd", ["scripts/deep", "elsewhere"])
def test_the_file_is_beside_the_script_or_above_it(tmp_path, run_file, place, cwd):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scripts" / "deep").mkdir(parents=True)
    write(tmp_path / place / ".env", b"MLFLOW_EXPERIMENT_NAME=found\n")
    script = tmp_path / "scripts" / "deep" / "train.py"
    done = run_file(SHOW, script, tmp_path / cwd)
    assert '"mlflow_experiment_name": "found"' in done.stdout, done.stderr


def test_the_nearest_file_wins_and_that_of_the_script_before_that_of_the_start(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=far\n")
    write(tmp_path / "scripts" / ".env", b"MLFLOW_EXPERIMENT_NAME=near\n")
    write(tmp_path / "elsewhere" / ".env", b"MLFLOW_EXPERIMENT_NAME=start\n")
    done = run_file(SHOW, tmp_path / "scripts" / "train.py", tmp_path / "elsewhere")
    assert '"near"' in done.stdout


def test_without_a_script_the_file_is_where_the_process_started(tmp_path, run_script):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=start\n")
    (tmp_path / "job").mkdir()
    code = "import os, heimdall_tracking; os.chdir('job'); print(heimdall_tracking.settings)"
    assert "'start'" in run_script(code).out


def test_the_search_ends_at_the_home_folder(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=too-far\n")
    script = tmp_path / "home" / "project" / "train.py"
    write(script)
    done = run_file(SHOW, script, script.parent, HOME=tmp_path / "home")
    assert '"heimdall-localization"' in done.stdout, done.stderr


def test_the_process_wins(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=file\nMLFLOW_RUN_NAME_PREFIX=file\n")
    out = run_file(SHOW, MLFLOW_EXPERIMENT_NAME="process").stdout
    assert '"mlflow_experiment_name": "process"' in out
    assert '"mlflow_run_name_prefix": "file"' in out


def test_a_variable_names_another_file_and_an_empty_one_none(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=usual\n")
    write(tmp_path / "prod.env", b"MLFLOW_EXPERIMENT_NAME=other\n")
    assert '"other"' in run_file(SHOW, HEIMDALL_ENV_FILE="prod.env").stdout
    assert '"heimdall-localization"' in run_file(SHOW, HEIMDALL_ENV_FILE="").stdout


def test_a_file_that_is_named_and_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HEIMDALL_ENV_FILE", str(tmp_path / "none.env"))
    with pytest.raises(ConfigurationError, match=r"HEIMDALL_ENV_FILE.*none\.env"):
        _environment.env_file()


def test_a_folder_of_that_name_is_no_file(tmp_path, run_file):
    (tmp_path / ".env").mkdir()
    assert '"heimdall-localization"' in run_file(SHOW).stdout


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("mode", "is_read"), [(0o777, False), (0o755, True)])
def test_a_file_that_somebody_else_may_have_put_there_is_left_with_one_warning(
    tmp_path, run_file, mode, is_read
):
    folder = tmp_path / "shared"
    write(folder / ".env", b"MLFLOW_EXPERIMENT_NAME=planted\n")
    os.chown(folder / ".env", 12345, 12345)
    folder.chmod(mode)
    done = run_file(SHOW + "from heimdall_tracking import Settings\nSettings()\n", folder / "train.py")
    assert ('"planted"' in done.stdout) is is_read
    assert done.stderr.count("belongs to another user") == (not is_read)


def test_lines_that_cannot_be_read_are_named_without_their_text(tmp_path, run_file):
    write(tmp_path / ".env", b'A=1\nMLFLOW_EXPERIMENT_NAME=mine\nPASSWORD "hush"\n')
    done = run_file(SHOW)
    assert '"mine"' in done.stdout
    assert "left out: 3" in done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_a_file_that_changes_is_read_again(tmp_path):
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=one\n")
    assert Settings().mlflow_experiment_name == "one"
    write(tmp_path / ".env", b"MLFLOW_EXPERIMENT_NAME=another\n")
    assert Settings().mlflow_experiment_name == "another"


@pytest.mark.parametrize(
    ("in_file", "of_process"),
    [
        (
            {"MLFLOW_S3_ACCESS_KEY_ID": "f", "MLFLOW_S3_SECRET_ACCESS_KEY": "fs"},
            {"MLFLOW_S3_ACCESS_KEY_ID": "p"},
        ),
        ({"AWS_ACCESS_KEY_ID": "f", "AWS_SECRET_ACCESS_KEY": "fs"}, {"AWS_ACCESS_KEY_ID": "p"}),
    ],
)
def test_a_key_of_the_process_is_not_mixed_with_the_secret_of_a_file(
    tmp_path, monkeypatch, in_file, of_process
):
    write(tmp_path / ".env", "".join(f"{name}={value}\n" for name, value in in_file.items()).encode())
    for name, value in of_process.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.mlflow_s3_access_key_id == "p"
    assert settings.mlflow_s3_secret_access_key is None


def test_the_native_half_reads_the_file_and_settings_do_not_reach_the_environment(tmp_path, run_file):
    content = "HEIMDALL_MODE=offline\nMLFLOW_TRACKING_PASSWORD=p\nMLFLOW_TRACKING_USERNAME=u\n"
    content += (
        "MLFLOW_S3_ACCESS_KEY_ID=k\nMLFLOW_S3_SECRET_ACCESS_KEY=hush\nPOSTGRES_PASSWORD=hush\nOTHER=hush\n"
    )
    write(tmp_path / ".env", content.encode())
    done = run_file(
        "import os\nfrom heimdall_tracking import MLflowTracker\n"
        "tracker = MLflowTracker('sqlite:///m.db', set_environment=False)\n"
        "print(os.environ['HEIMDALL_MODE'], os.environ['MLFLOW_TRACKING_PASSWORD'])\n"
        "print([name for name, value in os.environ.items() if value == 'hush'])\n"
    )
    assert done.stdout == "offline p\n[]\n", done.stderr
    assert not (tmp_path / "m.db").exists()


def test_the_database_of_the_file_gets_the_runs(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_TRACKING_URI=sqlite:///from-dotenv.db\nMLFLOW_RUN_NAME_PREFIX=mine\n")
    code = "from heimdall_tracking import initialize_mlflow\n"
    code += "with initialize_mlflow().run() as run:\n    pass\n"
    assert run_file(code).returncode == 0
    from support.helpers import rows

    ((name,),) = rows(tmp_path / "from-dotenv.db", "SELECT name FROM runs")
    assert name.startswith("mine_")


def test_children_of_a_run_find_the_same_database_from_another_folder(tmp_path, run_file):
    write(tmp_path / ".env", b"MLFLOW_TRACKING_URI=sqlite:///one.db\n")
    (tmp_path / "job").mkdir()
    done = run_file(
        "import os, subprocess, sys\nfrom heimdall_tracking import initialize_mlflow\n"
        "initialize_mlflow()\n"
        "child = 'from heimdall_tracking import initialize_mlflow; initialize_mlflow()'\n"
        "subprocess.run([sys.executable, '-c', child], cwd='job', check=True)\n"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.db")) == ["one.db"]
