"""`heimdall train` as a program: its help, its flags, its runs, its ends, and two processes of torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch

import heimdall_tracking
import heimdall_training
from heimdall_tracking.cli import main
from support.helpers import HEARS_CTRL_C, PATIENCE_S, clean_environment, wait_until
from support.recorded import save_backbone, save_sessions

# Where the packages are, for programs that work in other folders.
PACKAGES = [str(Path(it.__file__).parents[1]) for it in (heimdall_tracking, heimdall_training)]
FLAGS = ["--backbone", "tiny:make", "--batch-size", "4", "--learning-rate", "1e-2", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path):
    """A working directory with recordings in `data` and the module `tiny`."""
    save_sessions(tmp_path / "data")
    return save_backbone(tmp_path)


@pytest.fixture
def train(folder):
    """Start the command in that folder; it records into mlflow.db there."""
    with contextlib.ExitStack() as processes:

        def train(*flags, launcher=("-c",), **variables):
            given = {
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                "HEIMDALL_DIR": folder / ".heimdall",
                "OMP_NUM_THREADS": 1,
                "PYTHONUNBUFFERED": 1,
                "PYTHONPATH": os.pathsep.join([*PACKAGES, os.environ.get("PYTHONPATH", "")]),
            }
            environment = clean_environment(**given | variables)
            # A test may run in the background, deaf to Ctrl-C.
            script = f"{HEARS_CTRL_C}import sys; from heimdall_tracking.cli import main; sys.exit(main())"
            program = [script, "train"] if launcher == ("-c",) else []
            command = [sys.executable, *launcher, *program, "--data", "data", *FLAGS, *flags]
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=environment,
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            return process

        yield train


def ended(process):
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def runs(folder):
    """The runs that a stock client finds."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [it.experiment_id for it in client.search_experiments()]
    return client, client.search_runs(experiments)


# Help and flags


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy_and_is_quick(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "heimdall_tracking.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"torch", "numpy", "mlflow", "heimdall_training", "yaml", "pandas"})
    assert "train" in shown.stdout
    command[1:3] = []
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # The time of the processor, 0.06 and 0.10 s where nothing else runs; other tests run beside this one.
    assert min(seconds) < 0.2


def test_the_help_has_every_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    flags = {
        "backbone",
        "pretrained",
        "freeze-backbone",
        "learning-rate",
        "batch-size",
        "epochs",
        "config",
        "output-dir",
        "run-name",
        "data",
        "resume",
        "device",
        "precision",
        "seed",
        "accumulate",
        "clip-norm",
        "warmup-steps",
        "compile",
        "limit-batches",
        "dry-run",
    }
    assert flags <= {*re.findall(r"--([a-z-]+)", text)}


def refused(capsys, *flags):
    try:
        code = main(["train", *flags])
    except SystemExit as end:
        code = end.code
    assert code in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--pretrained maybe",
            "argument --pretrained: it must be true, yes or 1, or false, no or 0, not 'maybe'",
        ),
        ("--freeze-backbone 2", "argument --freeze-backbone: it must be true"),
        ("--epochs 0", "argument --epochs: it must be a whole number from 1 on, not '0'"),
        ("--epochs x", "argument --epochs: it must be a whole number from 1 on, not 'x'"),
        ("--learning-rate -1", "argument --learning-rate: it must be a number above 0, not '-1'"),
        ("--precision bf16", "did you mean bf16-mixed?"),
        (
            "--limit-batches 0",
            "argument --limit-batches: it must be a number of batches from 1 on, or a share",
        ),
        ("--learning-rat 1", "unrecognized arguments: --learning-rat 1; did you mean --learning-rate?"),
        ("--epoch 1", "unrecognized arguments: --epoch 1; did you mean --epochs?"),
        ("--freeze-backbone yes --pretrained no", "--freeze-backbone true contradicts --pretrained false"),
        ("--backbone a:b --pretrained 1", "--pretrained true contradicts --backbone a:b"),
        ("--weights x --pretrained yes", "--weights contradicts --pretrained true"),
        ("--download --pretrained 0", "--download contradicts --pretrained false"),
        ("--resume last --run-name x", "--run-name contradicts --resume"),
        ("--resume last --output-dir gone", "there is no checkpoint gone/version_*/checkpoints/last.ckpt"),
        ("--resume gone.ckpt", "--resume gone.ckpt: there is no such checkpoint"),
        ("--val-split 0.5 --test-split 0.5", "val_split=0.5 and test_split=0.5 contradict each other"),
        ("--config gone.json", "there is no file gone.json"),
        ("", "data is missing: name the folder of the recordings by --data"),
        ("--data gone", "data='gone' is no folder"),
    ],
)
def test_flags_that_cannot_be_are_named(capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *flags.split())
    assert [*tmp_path.iterdir()] == []


def test_a_device_of_one_process_contradicts_several(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "contradicts 2 processes of torchrun" in refused(capsys, "--device", "cuda:1")


def test_a_wrong_file_is_named_even_where_a_flag_wins(capsys, tmp_path):
    file = tmp_path / "training_config.json"
    file.write_text('{"epochs": 0}')
    message = refused(capsys, "--config", str(file), "--epochs", "3")
    assert f"{file}: epochs=0 is not valid" in message


def test_without_the_wheel_it_says_what_to_install(run_script, tmp_path):
    (tmp_path / "data").mkdir()
    script = run_script(
        """
        import sys
        sys.modules["heimdall_training"] = None  # as if it were not installed
        from heimdall_tracking.cli import main
        sys.exit(main(["train", "--data", "data"]))
        """
    )
    assert script.code == 1
    assert script.err.startswith("heimdall: heimdall train: ")
    assert "pip install 'heimdall-tracking[training]'" in script.err
    assert "Traceback" not in script.err


# Trainings


def test_a_dry_run_tells_the_plan_and_leaves_nothing(train, folder):
    before = {*folder.iterdir()}
    code, out, err = ended(train("--dry-run", "--cache-dir", "cache", "--epochs", "7"))
    assert code == 0, err
    for text in ("network: tiny:make", "device: cpu, 32-true, 1 process\n", "train: 18 recordings, 5 batches",
                 "val: 3 recordings", "test: 3 recordings", "steps: 35 in 7 epochs of 5 batches",
                 "first batch: (4, 3, 128, 32) gives (4, 2), loss"):  # fmt: skip
        assert text in out
    assert {it for it in folder.iterdir() if it.name != "__pycache__"} == before


def test_a_training_is_one_run_that_a_stock_client_reads(train, folder):
    (folder / "training_config.json").write_text(json.dumps({"epochs": 9, "weight_decay": 1e-3}))
    flags = [
        "--config",
        "training_config.json",
        "--epochs",
        "2",
        "--output-dir",
        "models",
        "--run-name",
        "my-run",
    ]
    code, out, err = ended(train(*flags))
    assert code == 0, err
    assert re.search(
        r"heimdall: recording into sqlite:///.*mlflow\.db \(environment MLFLOW_TRACKING_URI\)", err
    ), err
    client, (run,) = runs(folder)
    assert (run.info.run_name, run.info.status) == ("my-run", "FINISHED")
    expected = {"epochs": "2", "weight_decay": "0.001", "learning_rate": "0.01", "backbone": "tiny:make"}
    assert expected.items() <= run.data.params.items()
    assert run.data.tags["phase"] == "training"
    assert run.data.metrics["final_test_loss"] == run.data.metrics["test/loss"]
    stored = {it.path for it in client.list_artifacts(run.info.run_id, "checkpoints")}
    assert "checkpoints/last.ckpt" in stored
    assert len(client.get_metric_history(run.info.run_id, "val/loss")) == 2
    assert f"run {run.info.run_id} FINISHED" in out
    assert (folder / "models" / "version_0" / "checkpoints" / "last.ckpt").is_file()


def test_without_a_store_it_says_what_is_used_and_compile_reaches_the_training(train, folder):
    code, _, err = ended(
        train("--epochs", "1", "--limit-batches", "1", "--compile", "eager", MLFLOW_TRACKING_URI="")
    )
    assert code == 0, err
    said = (
        "heimdall: recording into sqlite:///mlflow.db (the default; MLFLOW_TRACKING_URI names another store)"
    )
    assert said in err
    _, (run,) = runs(folder)
    assert (run.info.status, run.data.params["compile"]) == ("FINISHED", "eager")


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_signals_end_with_a_checkpoint_and_resume_goes_on_exactly(train, folder):
    code, _, err = ended(train("--epochs", "4", "--output-dir", "whole"))
    assert code == 0, err
    # The settings of a training that goes on are those of its checkpoint.
    flags, slow = ["--epochs", "4"], {"SLOW": "0.2"}
    for version, (number, expected) in enumerate([(signal.SIGINT, 130), (signal.SIGTERM, 143)]):
        process = train(*flags, **slow)
        checkpoint = folder / "outputs" / f"version_{version}" / "checkpoints" / "last.ckpt"
        wait_until(checkpoint.is_file, "an epoch has ended")
        process.send_signal(number)
        code, _, err = ended(process)
        assert code == expected, err
        assert "--resume last goes on from the last checkpoint" in err
        assert last(checkpoint.parents[1])["global_step"] < 20
        _, found = runs(folder)
        assert sorted(run.info.status for run in found) == ["FINISHED", "KILLED"]
        flags = ["--resume", "last"]
    code, _, err = ended(train(*flags))
    assert code == 0, err
    before, after = (last(folder / it)["state_dict"] for it in ("whole/version_0", "outputs/version_2"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    client, found = runs(folder)
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    histories = [client.get_metric_history(run.info.run_id, "val/loss") for run in found]
    one, other = ([(point.step, point.value) for point in history] for history in histories)
    assert one == other
    assert len(one) == 4
    code, _, err = ended(train("--resume", "last", "--seed", "5"))
    assert code == 1
    assert "seed=5 contradicts --resume: the training of the checkpoint has 0" in err


def test_two_processes_are_one_run_with_the_same_weights_before_and_after_a_signal(train, folder):
    torchrun = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "heimdall_tracking.train",
    ]
    launched = {"launcher": ("-m", *torchrun), "FOLDER": folder}
    process = train("--epochs", "3", **launched, SLOW="0.2")
    wait_until((folder / "outputs/version_0/checkpoints/last.ckpt").is_file, "an epoch has ended")
    process.send_signal(signal.SIGTERM)
    _, _, err = ended(process)
    assert err.count("heimdall: terminated") == 2
    _, (run,) = runs(folder)
    assert run.info.status == "KILLED"
    steps = last(folder / "outputs/version_0")["global_step"]
    code, out, err = ended(train("--resume", "last", **launched))
    assert code == 0, err
    _, (run,) = runs(folder)
    assert run.info.status == "FINISHED"
    assert out.count(f"run {run.info.run_id} FINISHED") == 1
    assert steps < last(folder / "outputs/version_1")["global_step"] == 6
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(it.name for it in (folder / "outputs").iterdir()) == ["version_0", "version_1"]


def test_a_backbone_that_makes_no_module_is_named(train, folder):
    code, _, err = ended(train("--backbone", "tiny:text"))
    assert code == 1
    assert "heimdall: backbone='tiny:text' must make a torch.nn.Module, not str" in err
    assert not (folder / "mlflow.db").exists()
