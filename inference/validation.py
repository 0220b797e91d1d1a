"""What the network gives for a fixed part of the test split, measured while it trains; the best checkpoint."""
import contextlib
import time

from tqdm import tqdm

from inference.evaluation import Comparison, Evaluation, means, rows
from inference.items import choose_items, spread
from inference.metrics import consistency
from inference.tables import POSES, AppearanceFeatures
from training.checkpoints import BestCheckpoint, read_best


class Validation:
    """SSIM, PSNR, MAE and the consistency of appearances, logged as scalars; keeps the checkpoint of the highest SSIM.

    They are of the config's `eval_images` test images, reconstructed, of at most as many transfers, and of a tenth of
    the images as appearances, each in POSES poses. SSIM is of transfers or, if there are no pairs, of reconstructions.

    validation = Validation(config, load, checkpoint, first_step)
    with validation.of_training(run, saver, session):
        validation.measure(step, renderer)

    checkpoint: that the training starts from, or None; its run's best one is carried on. Raises UserError where the
    index's pairs are not numbers of images.
    """

    def __init__(self, config, load, checkpoint, first_step):
        self._config, self._load, self._first_step = config, load, first_step
        self._numbers, pairs, _ = choose_items(load.index, config["eval_images"])
        self._pairs = spread(pairs, config["eval_images"])
        self._score_of = "ssim_transfer" if len(self._pairs) else "ssim_reconstruction"
        self._earlier_best = read_best(checkpoint) if checkpoint else None
        self._metrics = self._figures = None

    @contextlib.contextmanager
    def of_training(self, run, saver, session):
        """Gets ready to measure what a session trains and to log it to a Run."""
        conditions = {"score": self._score_of, "eval_images": self._config["eval_images"],
                      "data_index": self._config["data_index"]}
        self._run, self._best = run, BestCheckpoint(saver, session, run.checkpoints, conditions)
        self._best.carry_on(self._earlier_best, self._first_step)
        with Comparison(self._config, vgg_weights=None) as self._compare, \
                AppearanceFeatures(self._config) as self._features:
            if self._features.why_not:
                run.log(f"the consistency of appearances is not measured: {self._features.why_not}")
            yield

    def measure(self, step, renderer):
        """Logs the figures of a Renderer's network, of images that can be read, and the seconds that this took."""
        start = time.time()
        evaluation = Evaluation(self._config, self._load.index, renderer, self._compare)
        evaluation.of_images(self._numbers, self._pairs, tqdm(disable=True))
        self._metrics = evaluation.metrics()
        self._figures = means(self._metrics)
        if self._figures and self._features.why_not is None:
            made = evaluation.made_features(self._numbers, self._features, max(1, len(self._numbers) // POSES))
            if made:
                self._figures["consistency"] = consistency(made)["std"]
        scalars = dict(self._figures, step=step, seconds=time.time() - start)
        self._run.scalars(step, {f"eval_{name}": value for name, value in scalars.items()})
        if self._score_of in self._figures:
            self._best.offer(step, self._figures[self._score_of])

    def report(self):
        """Prints the last figures, and which checkpoint is the best."""
        if self._metrics is None:
            return
        for line in rows({task: self._metrics[task] for task in ("reconstruction", "transfer")}):
            self._run.say(line)
        if "consistency" in self._figures:
            self._run.say(f"consistency of appearances: {self._figures['consistency']:.4g}")
        if self._best.step is not None:
            self._run.say(f"best {self._score_of}: {self._best.score:.4f}, at step {self._best.step}, which --best "
                          "takes")
