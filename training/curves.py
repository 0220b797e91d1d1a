"""The curves of runs, training and validation, as a picture."""
import io
import os
import re

import numpy as np

from common.errors import UserError, reason

# The panels: a scalar each, or those of its name with a number or task; LOG of them on a logarithmic axis.
PANELS = ("loss", "likelihood_loss", "kl_loss", "kl_weight", "learning_rate", "gradient_norm", "vgg_loss", "gram_loss",
          "images_per_s", "eval_ssim", "eval_ssim_flat51", "eval_psnr", "eval_mae", "eval_perceptual_loss",
          "eval_joints", "eval_consistency")
RESULT_PANELS = ("loss", "likelihood_loss", "kl_loss", "eval_ssim")
LOG = ("loss", "likelihood_loss", "kl_loss", "kl_weight", "gradient_norm", "vgg_loss", "gram_loss")
MAX_PIXELS = 1600  # of a side of the transfers in result.png
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#7f7f7f")


def name_runs(runs):
    """{name: folder}: named by the last part of their paths, or where that is not enough by the paths."""
    names = [os.path.basename(os.path.abspath(run)) for run in runs]
    return dict(zip(names if len(set(names)) == len(runs) else runs, runs))


def read_curves(run):
    """{scalar: (steps, values)} of a run folder's log.txt, two arrays. Raises UserError where it has none."""
    path = os.path.join(run, "log.txt")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}; expected the log of a training")
    found = {}
    for name, value in re.findall(r"^\S+ \S+ (\w+): ([-+.\de]+|nan|-?inf)$", text, re.M):
        try:
            found.setdefault(name, []).append(float(value))
        except ValueError:  # half a number, the last thing that a killed run wrote
            break
    if not found.get("global_step"):
        raise UserError(f"{path}: has no scalars; expected the log of a training")
    curves = {}
    for name, values in found.items():
        steps = found.get("eval_step" if name.startswith("eval_") else "global_step", [])
        # Logged together; of the last step of a killed run some may be missing.
        curves[name] = np.array(steps[:len(values)]), np.array(values[:len(steps)])
    return curves


def save_curves(curves, path):
    """Draws {run: {scalar: (steps, values)}} to a PNG, a panel for each of PANELS that is there. Raises UserError."""
    panels = [panel for panel in PANELS if any(of_panel(of_run, panel) for of_run in curves.values())]
    if not panels:
        raise UserError(f"no scalars to draw in {', '.join(curves)}; expected the log of a training")
    figure, axes = make_figure(-(-len(panels) // 3), 3, len(panels))
    for panel, ax in zip(panels, axes):
        draw_panel(ax, panel, curves)
    if len(curves) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
    try:
        figure.savefig(path, format="png", dpi=100)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}")


def save_result(run, transfers):
    """Writes result.png into the folder of a Run: its losses and transfers, the last grid (h, w, 3) uint8 or None.

    Returns its path, or None where there is neither yet. Raises UserError.
    """
    try:
        curves = {"": read_curves(run.folder)}
    except UserError:  # nothing was logged yet
        curves = {}
    panels = [panel for panel in RESULT_PANELS if curves and of_panel(curves[""], panel)]
    if not panels and transfers is None:
        return None
    columns = 1 if transfers is None else 3
    figure, _ = make_figure(max(1, len(panels)), columns)
    spec = figure.add_gridspec(max(1, len(panels)), columns)
    for row, panel in enumerate(panels):
        draw_panel(figure.add_subplot(spec[row, 0]), panel, curves)
    if transfers is not None:
        ax = figure.add_subplot(spec[:, 1:])
        thinned = -(-len(transfers) // MAX_PIXELS)  # what is not seen here would fill the memory
        ax.imshow(transfers[::thinned, ::thinned])
        ax.set_title("transfer", fontsize=10)
        ax.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    run.write("result.png", png.getvalue())
    return run.path("result.png")


def make_figure(rows, columns, n=0):
    """(figure, its first n axes) with room for rows x columns panels. Needs no window system, as pyplot would."""
    try:
        from matplotlib.figure import Figure  # here, as trainings need it at their end only, and it takes a second
    except ImportError as error:
        raise UserError(f"curves need matplotlib, pip install -r requirements.txt installs it ({reason(error)})")
    figure = Figure(figsize=(4 * columns, 3.2 * rows), tight_layout=True)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(n)]


def draw_panel(ax, panel, curves):
    """Draws the scalars of a panel: a colour per run or, of a single one, per scalar; validation dashed."""
    single = len(curves) == 1
    for number, (run, of_run) in enumerate(curves.items()):
        for name in of_panel(of_run, panel):
            steps, values = of_run[name]
            base = name.replace("_valid", "")
            in_training = [other for other in of_panel(of_run, panel) if "_valid" not in other]
            k = sum(other < base for other in in_training) if single else number
            ax.plot(steps, values, "--" if base != name else "-", color=COLOURS[k % len(COLOURS)], linewidth=1.2,
                    marker="." if len(steps) == 1 else None,  # a single value makes no line
                    label=name if single else run if name == panel else None)
    all_values = [of_run[name][1] for of_run in curves.values() for name in of_panel(of_run, panel)]
    if panel in LOG and all((values > 0).all() for values in all_values):
        ax.set_yscale("log")
    ax.set_title(panel, fontsize=10)
    ax.set_xlabel("step", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    if single:
        ax.legend(fontsize=7)


def of_panel(of_run, panel):
    """Names of the scalars of a run that belong to a panel."""
    return sorted(name for name in of_run if re.match(panel + r"(_\d+)?(_valid|_reconstruction|_transfer)?$", name))
