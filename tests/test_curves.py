"""The curves of runs."""
import shutil

import matplotlib.figure
import numpy as np
import pytest
from helpers import exit_code
from PIL import Image

from tools import plot_run
from training.config import load_config
from training.curves import MAX_PIXELS, read_curves, save_curves, save_result
from training.runs import Run


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved from now on."""
    saved, savefig = [], matplotlib.figure.Figure.savefig

    def save(figure, *args, **options):
        saved.append(figure)
        return savefig(figure, *args, **options)
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    return saved


def panels(figure):
    """{title: axes} of a figure."""
    return {ax.get_title(): ax for ax in figure.axes}


def same_line(line, curve):
    """Whether a line shows a curve, (steps, values)."""
    return np.array_equal(line.get_xdata(), curve[0]) and np.array_equal(line.get_ydata(), curve[1])


def test_a_runs_scalars_are_drawn_in_their_panels(trained, tmp_path, capsys, figures):
    out = tmp_path / "curves.png"
    assert exit_code(plot_run, str(trained[0]), "--out", str(out)) == 0
    assert f"the curves are in {out}" in capsys.readouterr().out
    assert min(Image.open(str(out)).size) > 300
    curves, axes = read_curves(str(trained[0])), panels(figures[0])
    both, numbered = ("{}", "{}_valid"), ("{}_0", "{}_0_valid", "{}_1", "{}_1_valid")
    expected = {
        "loss": both, "likelihood_loss": both, "kl_loss": both + numbered, "kl_weight": both, "learning_rate": both,
        "gradient_norm": both[:1], "vgg_loss": numbered, "gram_loss": numbered, "images_per_s": both[:1]}
    assert list(axes) == list(expected)
    for title, names in expected.items():
        lines = {line.get_label(): line for line in axes[title].get_lines()}
        assert set(lines) == {name.format(title) for name in names}
        assert {text.get_text() for text in axes[title].get_legend().get_texts()} == set(lines)
        for name, line in lines.items():
            assert same_line(line, curves[name])
            assert line.get_linestyle() == ("--" if name.endswith("_valid") else "-")
        colours = {name: line.get_color() for name, line in lines.items()}
        in_training = {name: colour for name, colour in colours.items() if not name.endswith("_valid")}
        assert len(set(in_training.values())) == len(in_training)
        assert all(colours[name] == colours.get(name + "_valid", colours[name]) for name in in_training)


def test_axes_are_logarithmic_where_all_values_are_positive(trained, tmp_path, figures):
    curves = read_curves(str(trained[0]))
    assert (curves["gram_loss_0"][1] == 0).all()
    save_curves({"run": curves}, str(tmp_path / "curves.png"))
    scales = {title: ax.get_yscale() for title, ax in panels(figures[0]).items()}
    linear = {title for title, scale in scales.items() if scale == "linear"}
    assert linear == {"learning_rate", "images_per_s", "gram_loss"} and set(scales.values()) == {"linear", "log"}


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


def test_a_single_value_is_a_point(trained, tmp_path, figures):
    curves = {name: (steps[:1], values[:1]) if name == "loss_valid" else (steps, values)
              for name, (steps, values) in read_curves(str(trained[0])).items()}
    save_curves({"run": curves}, str(tmp_path / "curves.png"))
    markers = {line.get_label(): line.get_marker() for line in panels(figures[0])["loss"].get_lines()}
    assert markers == {"loss": "None", "loss_valid": "."}


def test_two_runs_share_their_panels(trained, tmp_path, figures):
    one = read_curves(str(trained[0]))
    runs = {"one": one, "two": {name: (steps + 1, values * 2) for name, (steps, values) in one.items()}}
    save_curves(runs, str(tmp_path / "curves.png"))
    colours = {}
    for ax in figures[0].axes:
        assert ax.get_legend() is None
        for run, curves in runs.items():
            of_run = [line for line in ax.get_lines() if any(same_line(line, curve) for curve in curves.values())]
            assert 2 * len(of_run) == len(ax.get_lines())
            colours.setdefault(run, set()).update(line.get_color() for line in of_run)
    assert [len(of_run) for of_run in colours.values()] == [1, 1] and colours["one"] != colours["two"]
    legend, = figures[0].legends
    drawn = {text.get_text(): {line.get_color()} for text, line in zip(legend.get_texts(), legend.get_lines())}
    assert drawn == colours


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


@pytest.fixture
def run(trained, tmp_path):
    """A Run with the log of a training."""
    with Run(str(tmp_path / "log"), load_config(trained[1])) as run:
        yield run


def test_a_result_is_the_losses_and_the_transfers(trained, run, figures):
    transfers = np.random.RandomState(0).randint(0, 256, (2 * MAX_PIXELS + 10, 90, 3)).astype(np.uint8)
    shutil.copy(str(trained[0] / "log.txt"), run.path("log.txt"))
    assert save_result(run, transfers) == run.path("result.png")
    axes, curves = panels(figures[0]), read_curves(str(trained[0]))
    assert list(axes) == ["loss", "likelihood_loss", "kl_loss", "transfer"]
    for title in ("loss", "likelihood_loss", "kl_loss"):
        lines = {line.get_label(): line for line in axes[title].get_lines()}
        assert title in lines and all(same_line(line, curves[name]) for name, line in lines.items())
    picture, = axes["transfer"].get_images()
    np.testing.assert_array_equal(picture.get_array(), transfers[::3, ::3])


def test_a_training_ends_with_its_result(trained, run):
    """result.png shows the log and the last transfers: from their files the same picture is made."""
    shutil.copy(str(trained[0] / "log.txt"), run.path("log.txt"))
    transfers = np.asarray(Image.open(str(trained[0] / "transfer_0000004.png")))
    again = np.asarray(Image.open(save_result(run, transfers)))
    np.testing.assert_array_equal(np.asarray(Image.open(str(trained[0] / "result.png"))), again)
