"""The curves of runs."""
import numpy as np
import pytest
from helpers import exit_code
from PIL import Image

from tools import plot_run
from training.curves import read_curves, save_curves


def test_curves_of_runs_become_a_png(trained, tmp_path, capsys):
    run, _ = trained
    out = tmp_path / "curves.png"
    assert exit_code(plot_run, str(run), "--out", str(out)) == 0
    pixels = np.asarray(Image.open(str(out)).convert("RGB"))
    assert min(pixels.shape[:2]) > 300 and (pixels != 255).any(axis=-1).mean() > 0.01
    assert "the curves are in" in capsys.readouterr().out


def test_the_logged_scalars_are_read_back(trained):
    curves = read_curves(str(trained[0]))
    for name in ("loss", "loss_valid", "kl_loss_0", "kl_loss_1", "kl_weight", "learning_rate", "images_per_s"):
        steps, values = curves[name]
        assert steps.tolist() == [1, 2, 4] and np.isfinite(values).all()
    np.testing.assert_allclose(curves["kl_loss"][1], curves["kl_loss_0"][1] + curves["kl_loss_1"][1], rtol=1e-5)


def test_a_killed_runs_last_step_may_be_half_there(trained, tmp_path):
    log = (trained[0] / "log.txt").read_text()
    (tmp_path / "log.txt").write_text(log[:log.rindex("kl_loss:") + 12])
    curves = read_curves(str(tmp_path))
    assert curves["loss"][0].tolist() == [1, 2] and curves["gradient_norm"][0].tolist() == [1, 2, 4]


def test_two_runs_share_their_panels(trained, tmp_path):
    runs = {name: read_curves(str(trained[0])) for name in ("one", "two")}
    save_curves(runs, str(tmp_path / "curves.png"))
    assert Image.open(str(tmp_path / "curves.png")).size[0] > 300


@pytest.mark.parametrize("content", [None, "", "2018-06-18 12:00:00 done\n"])
def test_what_is_no_run_is_refused(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "log.txt").write_text(content)
    assert exit_code(plot_run, str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "log.txt" in error and "expected the log of a training" in error


def test_a_log_without_curves_is_refused(tmp_path, capsys):
    (tmp_path / "log.txt").write_text("2018-06-18 12:00:00 global_step: 1\n")
    assert exit_code(plot_run, str(tmp_path), "--out", str(tmp_path / "curves.png")) == 2
    assert "no scalars to draw" in capsys.readouterr().err and not (tmp_path / "curves.png").exists()


def test_a_training_ends_with_its_result(trained):
    assert np.asarray(Image.open(str(trained[0] / "result.png"))).shape[0] > 300
