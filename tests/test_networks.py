"""Networks as files: export, what --checkpoint takes, archives of strangers."""
import functools
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import ROOT, exit_code, make_index, only_run, save_openpose, standing
from PIL import Image

import main
from batches import Loader
from common.errors import UserError
from dataset.index import Index
from inference import networks
from inference.networks import open_network, unpack, without_paths
from inference.rendering import restored
from training.checkpoints import find_checkpoint
from training.config import load_config


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A network file of the small training."""
    path = tmp_path_factory.mktemp("exported") / "small.vunet.zip"
    assert exit_code(main, "--mode", "export", "--checkpoint", trained[0], "--out", path) == 0
    return path


def pictures_of(folder):
    return {path.name: np.asarray(Image.open(str(path))) for path in sorted(only_run(folder).glob("transfer_0/*.png"))}


def transfer(checkpoint, log_dir, *options):
    return exit_code(main, "--mode", "transfer", "--checkpoint", checkpoint, "--log_dir", log_dir, *options)


# ---------------------------------------------------------------------------------------------- export

def test_a_network_file_renders_what_its_run_renders(trained, exported, toy, tmp_path):
    for name, checkpoint in (("run", trained[0]), ("file", exported)):
        assert transfer(checkpoint, tmp_path / name, "--appearance", f"{toy}:0", "--pose", f"{toy}:1-3") == 0
    of_run, of_file = pictures_of(tmp_path / "run"), pictures_of(tmp_path / "file")
    assert len(of_run) == 3 and of_run.keys() == of_file.keys()
    for name in of_run:
        np.testing.assert_array_equal(of_run[name], of_file[name])
    assert str(exported) in (only_run(tmp_path / "file") / "log.txt").read_text()


def test_a_network_file_holds_the_weights_once_and_no_moments(trained, exported):
    with zipfile.ZipFile(str(exported)) as archive:
        names = set(archive.namelist())
        assert names == {"config.yaml", "network.json", "README.md", "samples.png", "saved_model/saved_model.pb",
                         "saved_model/variables/variables.index",
                         "saved_model/variables/variables.data-00000-of-00001"}
        assert json.loads(archive.read("network.json").decode())["step"] == 4
        assert Image.open(io.BytesIO(archive.read("samples.png"))).size == (3 * 2 * 16, 3 * 16)
        assert "(N, 8, 8, 24)" in archive.read("README.md").decode()
    with open_network(str(exported)) as network:
        checkpoint = network.checkpoint()
        assert not checkpoint.has_moments() and checkpoint.step() == 4 and network.aspect({}) == 1.0
        config = load_config(network.config_path())
        assert config["data_index"] == "toy0/index.p"  # nothing of this machine's folders
        assert dict(config, data_index="") == dict(load_config(trained[1]), data_index="")
    of_run = tf.train.NewCheckpointReader(find_checkpoint(str(trained[0]))).get_variable_to_shape_map()
    assert set(checkpoint.shapes) == {name for name in of_run if name.endswith(("/V", "/g", "/b"))} | {"global_step"}


@pytest.mark.parametrize("path, kept", [
    ("/home/ann/photos/index.p", "photos/index.p"), ("../ann/photos/index.p", "photos/index.p"),
    ("data/market/index.p", "data/market/index.p"), ("imagenet", "imagenet")])
def test_paths_outside_the_working_directory_are_shortened(path, kept):
    assert without_paths({"data_index": path, "vgg_weights": path, "lr": 1.0}) == {
        "data_index": kept, "vgg_weights": kept, "lr": 1.0}


def test_metrics_go_into_the_file_and_nothing_is_replaced(trained, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"reconstruction": {"ssim": 0.5}, "left_out": ["me.jpg"]}')
    out = tmp_path / "a.zip"
    export = functools.partial(exit_code, main, "--mode", "export", "--checkpoint", trained[0], "--out", out)
    (tmp_path / "bad.json").write_text("[")
    assert export("--metrics", tmp_path / "bad.json") == 2 and not out.exists()
    assert "--metrics: " in capsys.readouterr().err
    assert export("--metrics", tmp_path / "metrics.json") == 0
    with zipfile.ZipFile(str(out)) as archive:
        assert json.loads(archive.read("metrics.json").decode()) == {"reconstruction": {"ssim": 0.5}}
    content = out.read_bytes()
    assert export() == 2 and "is there already" in capsys.readouterr().err and out.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "bad.json", "metrics.json"]


USE_SAVED_MODEL = """
import sys
import numpy as np
import tensorflow as tf
fed = np.load(sys.argv[2])
parts, stick = fed["parts"], fed["stick"]
if tf.__version__.startswith("1."):
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signatures = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1]).signature_def
        def call(name, **inputs):
            signature = signatures[name]
            return session.run({key: info.name for key, info in signature.outputs.items()},
                               {signature.inputs[key].name: value for key, value in inputs.items()})
        latents = call("encode", parts=parts)
        picture = call("render", stick=stick, **latents)["picture"]
        sample = call("sample", stick=stick, number=1)["picture"]
else:
    model = tf.saved_model.load(sys.argv[1])
    latents = model.signatures["encode"](parts=tf.constant(parts))
    picture = model.signatures["render"](stick=tf.constant(stick), **latents)["picture"].numpy()
    sample = model.signatures["sample"](stick=tf.constant(stick), number=tf.constant(1))["picture"].numpy()
assert not {"main", "models", "nn"} & set(sys.modules)
np.savez(sys.argv[3], picture=picture, sample=sample)
"""


def use_saved_model(archive, fed, tmp_path):
    """What a process without this project makes of a network file's SavedModel."""
    with zipfile.ZipFile(str(archive)) as file:
        file.extractall(str(tmp_path / "unpacked"))
    np.savez(str(tmp_path / "fed.npz"), **fed)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", USE_SAVED_MODEL, str(tmp_path / "unpacked" / "saved_model"),
                    str(tmp_path / "fed.npz"), str(tmp_path / "made.npz")], cwd=str(tmp_path), check=True,
                   env=environment, timeout=300)
    return np.load(str(tmp_path / "made.npz"))


def test_the_saved_model_runs_without_this_code(exported, toy, tmp_path):
    index = Index(str(toy / "index.p"))
    with open_network(str(exported)) as network:
        config = load_config(network.config_path())
        batch = Loader(index, 16, 1)(index.usable("test")[:2])

        class Options:
            pass
        Options.network = network
        with restored(Options.network, config) as renderer:
            picture = renderer.transfer(batch, batch.shape_image)
            sample = renderer.sample(batch.shape_image, 1)
    has_part = batch.has_part.repeat(3, axis=-1)[:, np.newaxis, np.newaxis]
    fed = {"parts": ((batch.appearance / 127.5 - 1) * has_part).astype(np.float32),
           "stick": (batch.shape_image / 127.5 - 1).astype(np.float32)}
    made = use_saved_model(exported, fed, tmp_path)
    np.testing.assert_allclose(made["picture"], picture, atol=1e-5)
    np.testing.assert_allclose(made["sample"], sample, atol=1e-5)


@pytest.mark.skipif(tf.__version__.startswith("1."), reason="TensorFlow 1.15 wrote it; 2.x reads it too")
def test_the_saved_model_of_tensorflow_115_runs_in_2(tmp_path):
    golden = os.path.join(ROOT, "tests", "golden", "tf115")
    expected = np.load(golden + ".npz")
    made = use_saved_model(golden + ".vunet.zip", {name: expected[name] for name in ("parts", "stick")}, tmp_path)
    np.testing.assert_allclose(made["picture"], expected["picture"], atol=1e-5)
    np.testing.assert_allclose(made["sample"], expected["sample"], atol=1e-5)


@pytest.mark.slow
def test_training_from_a_network_file_starts_anew_from_its_weights(exported, small_config, tmp_path, capsys):
    config = small_config(lr_decay_end=1, lr_decay_begin=0, lr=1e-12, ckpt_freq=1)
    train = functools.partial(exit_code, main, "--config", config, "--checkpoint", exported, "--log_dir",
                              tmp_path / "log")
    assert train() == 2 and not (tmp_path / "log").exists()
    assert "has no moments of Adam to go on with" in capsys.readouterr().err
    assert train("--retrain") == 0
    after = tf.train.NewCheckpointReader(find_checkpoint(str(only_run(tmp_path / "log"))))
    assert after.get_tensor("global_step") == 1
    np.testing.assert_allclose(after.get_tensor("beta1_power"), 0.5**2)
    with open_network(str(exported)) as network:
        before = tf.train.NewCheckpointReader(network.prefix)
        for name in network.checkpoint().shapes:
            if name != "global_step":
                np.testing.assert_allclose(after.get_tensor(name), before.get_tensor(name), atol=1e-9)


# ---------------------------------------------------------------------------------------------- archives, URLs

def as_zip(folder, path):
    with zipfile.ZipFile(str(path), "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(str(file), str(file.relative_to(folder.parent)))
    return path


def as_tar(folder, path):
    with tarfile.open(str(path), "w:gz") as archive:
        archive.add(str(folder), folder.name)
    return path


@pytest.mark.parametrize("pack, name", [(as_zip, "run.zip"), (as_tar, "run.tar.gz"), (as_tar, "oddly.named")])
def test_an_archive_of_a_run_folder_gives_its_newest_checkpoint(trained, tmp_path, pack, name):
    path = pack(trained[0], tmp_path / name)
    with open_network(str(path)) as network:
        assert network.checkpoint().step() == 4 and load_config(network.config_path()) == load_config(trained[1])
        assert network.checkpoint().has_moments()
    assert not os.path.exists(network.prefix + ".index")


def test_an_archive_of_a_checkpoint_needs_a_config(trained, tmp_path, capsys):
    path = as_zip(trained[0] / "checkpoints", tmp_path / "checkpoints.zip")
    assert transfer(path, tmp_path / "log", "--batches", 1) == 2
    assert "--config is needed: " in capsys.readouterr().err
    assert transfer(path, tmp_path / "log", "--batches", 1, "--config", trained[1]) == 0


def test_a_network_comes_from_a_url_once_and_its_sum_is_checked(exported, server, tmp_path, capsys):
    content = exported.read_bytes()
    (tmp_path / "served" / "a.zip").write_bytes(content)
    digest, url = hashlib.sha256(content).hexdigest(), f"{server}/a.zip"
    for fragment in ("", f"#sha256={digest}"):
        with open_network(url + fragment) as network:
            assert network.checkpoint().step() == 4
        assert f"{url}: SHA-256 {digest}, kept as" in capsys.readouterr().out
    os.remove(str(tmp_path / "served" / "a.zip"))
    (tmp_path / "served" / "page.zip").write_text("<html>log in</html>")
    with open_network(url) as network:  # from the cache
        assert network.checkpoint().step() == 4
    for bad, words in ((f"{server}/none.zip", "404"), (url + "#sha256=12", "expected #sha256= and 64"),
                       (url + "#sha256=" + 64 * "0", "404|does not match"), ("http://127.0.0.1:9/a.zip", "reached"),
                       (f"{server}/page.zip", "expected a checkpoint, a run folder, or a .zip")):
        with pytest.raises(UserError, match=words) as error, open_network(bad):
            pass
        assert "\n" not in str(error.value)
    (tmp_path / "served" / "page.zip").write_bytes(content)
    with open_network(f"{server}/page.zip") as network:  # the page was not kept
        assert network.checkpoint().step() == 4


def test_a_network_file_that_was_packed_again_is_known(exported, tmp_path):
    with zipfile.ZipFile(str(exported)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    again = {f"small/{name}": content for name, content in contents.items()}
    again["__MACOSX/small/saved_model/variables/._variables.index"] = b"x"
    make_zip(tmp_path / "again.zip", again)
    with open_network(str(tmp_path / "again.zip")) as network:
        assert network.checkpoint().step() == 4 and os.path.exists(network.config_path())


def test_faults_of_an_archive_name_the_archive(exported, tmp_path, capsys):
    with zipfile.ZipFile(str(exported)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    make_zip(tmp_path / "odd.zip", dict(contents, **{"config.yaml": b"speed: 3"}))
    assert transfer(tmp_path / "odd.zip", tmp_path / "log") == 2
    assert f"error: {tmp_path / 'odd.zip'}: config.yaml: " in capsys.readouterr().err
    make_zip(tmp_path / "wide.zip", dict(contents, **{"network.json": b"{}"}))
    save_person(tmp_path / "me.png", 20, 20)
    assert transfer(tmp_path / "wide.zip", tmp_path / "log", "--appearance", tmp_path / "me.png", "--pose", 0) == 2
    assert f"{tmp_path / 'wide.zip'}: network.json: aspect: expected" in capsys.readouterr().err


def make_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(str(path), "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def make_tar(path, members):
    """members: [(TarInfo, content or None)]."""
    with tarfile.open(str(path), "w:gz") as archive:
        for info, content in members:
            if content is not None:
                info.size = len(content)
            archive.addfile(info, None if content is None else io.BytesIO(content))


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def tar_with_a_long_header():
    """A tar file whose first header claims, and has, a gigabyte of zeros for a name."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(2**10):
            stream.write(bytes(2**20))
    return file.getvalue()


def test_archives_of_strangers_write_nothing_outside_and_are_answered_in_one_line(tmp_path):
    secret = tmp_path / "secret.yaml"
    secret.write_text("spatial_size: 1")
    zeros = bytes(2**27)
    make_zip(tmp_path / "up.zip", {"../../a.index": b"x", "../../a.data-00000-of-00001": b"x"})
    make_zip(tmp_path / "root.zip", {"/tmp/model.ckpt-1.index": b"x", "/tmp/model.ckpt-1.data-00000-of-00001": b"x"})
    make_zip(tmp_path / "bomb.zip", {"model.ckpt-1.index": b"x", "model.ckpt-1.data-00000-of-00001": zeros})
    make_zip(tmp_path / "nothing.zip", {"a.txt": b"x"})
    make_zip(tmp_path / "two.zip", {"a.index": b"x", "b.index": b"x"})
    make_tar(tmp_path / "links.tar.gz", [link("a.index", str(secret), tarfile.SYMTYPE),
                                         link("checkpoints/model.ckpt-1.index", str(secret), tarfile.LNKTYPE)])
    make_tar(tmp_path / "bomb.tar.gz", [(tarfile.TarInfo("x"), zeros), (tarfile.TarInfo("a.index"), b"x")])
    make_tar(tmp_path / "many.tar.gz", [(tarfile.TarInfo(f"{i}"), b"") for i in range(300)])
    (tmp_path / "long.tar.gz").write_bytes(tar_with_a_long_header())
    for name in ("empty.zip", "text.zip", "half.zip"):
        content = {"empty.zip": b"", "text.zip": b"hello", "half.zip": (tmp_path / "bomb.zip").read_bytes()[:500]}
        (tmp_path / name).write_bytes(content[name])
    before = sorted(path.name for path in tmp_path.iterdir())
    for path in sorted(tmp_path.glob("*.zip")) + sorted(tmp_path.glob("*.gz")):
        target = tmp_path / "target" / path.name
        target.mkdir(parents=True)
        try:
            prefix = unpack(str(path), str(target), path.name)
            assert path.name in ("up.zip", "root.zip") and prefix.startswith(str(target))  # under names of our own
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 1500
        assert all(file.stat().st_size < 2**20 for file in target.rglob("*") if file.is_file())
        assert not [file for file in target.rglob("*") if file.is_symlink()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before + ["target"])
    assert not os.path.exists("/tmp/model.ckpt-1.index")


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    make_zip(tmp_path / "a.zip", {"model.ckpt-1.index": b"x" * 100, "model.ckpt-1.data-00000-of-00001": b"y" * 1000})
    content = (tmp_path / "a.zip").read_bytes()
    lying = content.replace((1000).to_bytes(4, "little"), (10**6).to_bytes(4, "little"))
    assert lying != content
    (tmp_path / "a.zip").write_bytes(lying)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="a.zip"):
        unpack(str(tmp_path / "a.zip"), str(tmp_path / "out"), "a.zip")


# ---------------------------------------------------------------------------------------------- aspect

def save_person(path, width, height):
    """A photo of somebody standing in it, with the joints beside it."""
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)).save(str(path))
    joints = standing().astype(float)
    save_openpose(path.with_suffix(".json"), np.where(joints < 0, -1, joints * (width, height)))
    return path


def test_a_photo_is_cut_to_the_aspect_of_the_training_and_rendered_in_it(trained, tmp_path):
    make_index(tmp_path, n=4)  # pictures of 10 x 20
    config = load_config(trained[1])
    config["data_index"] = str(tmp_path / "index.p")
    with open_network(str(trained[0])) as network:
        assert network.aspect(config) == 1.0  # the run says so
        old_run = network._replace(folder=str(tmp_path / "nowhere"))
        assert old_run.aspect(config) == 0.5  # of an older run, which says nothing, the index tells
        config["data_index"] = "none"
        assert old_run.aspect(config) == 1.0
    me, you = (save_person(tmp_path / name, 200, 200) for name in ("me.png", "you.png"))
    path = tmp_path / "narrow.zip"
    with zipfile.ZipFile(str(path), "w") as archive:
        for file in (trained[0] / "checkpoints").glob("model.ckpt-4.*"):
            archive.write(str(file), f"checkpoints/{file.name}")
        archive.write(str(trained[0] / "config.yaml"), "config.yaml")
        archive.writestr("network.json", '{"aspect": 0.5}')
    for aspect, shape in ((None, (8, 16)), ("own", (8, 16)), ("square", (16, 16))):
        log_dir = tmp_path / f"log_{aspect}"
        options = ["--aspect", aspect] if aspect else []
        assert transfer(path, log_dir, "--set", "data_index=none", "--appearance", me, "--pose", you, *options) == 0
        cell = Image.open(str(only_run(log_dir) / "transfer_0" / "me_in_pose_of_you.png"))
        assert cell.size == shape
        assert Image.open(str(only_run(log_dir) / "transfer_0.png")).size == (32, 32)
    assert transfer(path, tmp_path / "log_index", "--appearance", 0, "--pose", 1) == 0
    for cell in (only_run(tmp_path / "log_index") / "transfer_0").glob("*.png"):
        assert Image.open(str(cell)).size == (16, 16)  # of data sets, square as before


def test_a_network_json_that_is_damaged_is_named(tmp_path):
    for content in ("", "[]", "{}", '{"aspect": "wide"}', '{"aspect": 0}', '{"aspect": 1e9}', '{"aspect": NaN}'):
        (tmp_path / "network.json").write_text(content)
        with pytest.raises(UserError, match="a.zip: network.json: (is not JSON|aspect: expected)"):
            networks.read_details(str(tmp_path / "network.json"), "a.zip: network.json")
