"""Transfers and animations of one's own choice."""
import json
import os

import imageio_ffmpeg
import numpy as np
import pytest
from helpers import exit_code, only_run, save_openpose, standing
from PIL import Image

import main
from batches import make_loader, stick_figure
from common.errors import UserError
from dataset.index import Index, J, load_image
from inference import rendering
from inference.movies import write_gif, write_mp4
from inference.networks import open_network
from inference.rendering import interpolate, restored
from training.config import load_config

# ---------------------------------------------------------------------------------------------- transfer

def test_chosen_people_in_chosen_poses(trained, toy, tmp_path):
    run, _ = trained
    index = Index(str(toy / "index.p"))
    people, poses = index.usable("test")[:2], index.usable("train")[:3]
    stems = [os.path.splitext(os.path.basename(index.images[n]))[0] for n in list(people) + list(poses)]
    assert exit_code(main, "--mode", "transfer", "--checkpoint", run, "--log_dir", tmp_path / "log",
                     "--appearance", people[0], stems[1], "--pose", index.images[poses[0]], stems[3], poses[2]) == 0
    folder = only_run(tmp_path / "log")
    cells = {path.name for path in (folder / "transfer_0").iterdir()}
    assert cells == {f"{a}_in_pose_of_{b}.png" for a in stems[:2] for b in stems[2:]}
    grid = np.asarray(Image.open(str(folder / "transfer_0.png")))
    assert grid.shape == (3 * 16, 4 * 16, 3)
    np.testing.assert_array_equal(grid[16:32, :16], load_image(index.image_path(people[0]), 16))
    np.testing.assert_array_equal(grid[:16, 48:], stick_figure(index.joints[poses[2]], 16))
    cell = np.asarray(Image.open(str(folder / "transfer_0" / (f"{stems[1]}_in_pose_of_{stems[3]}.png"))))
    np.testing.assert_array_equal(grid[32:, 32:48], cell)


def test_a_renderer_makes_any_number_of_pictures_and_looks_at_each_shape_once(trained):
    config = load_config(trained[1])
    batch = make_loader(Index(config["data_index"]), config).batch(range(5))  # a batch is 2
    with open_network(str(trained[0])) as network, restored(network, config) as renderer:
        latents, which = renderer.encode(batch), [1, 0, 1, 1, 0]
        found = renderer.render(latents, batch.shape_image[:2], which)
        expected = renderer.render(latents, batch.shape_image[which])
        one_by_one = [renderer.render([z[i:i + 1] for z in latents], batch.shape_image[[k]])
                      for i, k in enumerate(which)]
        assert len(renderer.sample(batch.shape_image)) == 5
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, np.concatenate(one_by_one), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("options, words", [
    (["--mode", "transfer", "--appearance", "none"], "--appearance: none: expected a file, a folder, or an image of"),
    (["--mode", "animate", "--appearance", "pose.json", "--pose", "0-2"], "pose.json: expected a picture, found poses"),
    (["--mode", "transfer", "--appearance", "0", "--mix", "arms=1", "left_upper_arm=2"], "left upper arm already"),
    (["--mode", "transfer", "--appearance", "0", "--mix", "arms=0-1"], "expected one image, found 2"),
    (["--mode", "animate", "--appearance", "0", "--pose", "dance.json", "--seconds_per_pose", "5"],
     "--seconds_per_pose: expected none beside"),
    (["--mode", "transfer", "--appearance", "0", "--pose", "dance.json", "1"], "expected no other items beside")])
def test_bad_choices_leave_no_run_folder(trained, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    save_openpose(tmp_path / "pose.json", standing())
    frame = json.loads((tmp_path / "pose.json").read_text())
    (tmp_path / "dance.json").write_text(json.dumps([frame, frame]))
    assert exit_code(main, *options, "--checkpoint", str(trained[0])) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "log").exists()


def test_a_checkpoint_outside_of_a_run_needs_a_config(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (trained[0] / "checkpoints").glob("*ckpt-4*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert exit_code(main, "--mode", "transfer", "--checkpoint", "model.ckpt-4") == 2
    assert "--config is needed: model.ckpt-4 is not in a run folder" in capsys.readouterr().err
    assert exit_code(main, "--mode", "transfer", "--checkpoint", "model.ckpt-4", "--config", trained[1],
                     "--batches", 1) == 0


# ---------------------------------------------------------------------------------------------- animate

def test_an_animation_is_a_gif_and_an_mp4_of_person_pose_and_result(trained, toy, tmp_path):
    run, _ = trained
    index = Index(str(toy / "index.p"))
    a, b, c = index.usable("test")[:3]
    assert exit_code(main, "--mode", "animate", "--checkpoint", run, "--log_dir", tmp_path / "log", "--fps", 20,
                     "--seconds_per_pose", 0.2, "--appearance", a, "--pose", b, c, b) == 0
    folder = only_run(tmp_path / "log")
    gif = Image.open(str(folder / "animation.gif"))
    assert gif.size == (48, 16) and gif.info["duration"] == 50 and gif.info["loop"] == 0
    first = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(first[:, :16] - load_image(index.image_path(a), 16)).mean() < 8
    assert np.abs(first[:, 16:32] - stick_figure(index.joints[b], 16)).mean() < 8
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(folder / "animation.mp4"))
    assert frames == 9 and abs(seconds - 0.45) < 0.06  # 2 x 4 + 1 of 50 ms each


def test_an_animation_too_long_for_a_gif_is_an_mp4(trained, toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rendering, "MAX_PIXELS", 16 * 48 * 8)
    a, b = Index(str(toy / "index.p")).usable("test")[:2]
    assert exit_code(main, "--mode", "animate", "--checkpoint", trained[0], "--log_dir", tmp_path / "log", "--fps", 20,
                     "--seconds_per_pose", 0.4, "--appearance", a, "--pose", b, a) == 0
    assert "animation.gif is left out: of 9 frames" in capsys.readouterr().out
    folder = only_run(tmp_path / "log")
    assert (folder / "animation.mp4").stat().st_size and not (folder / "animation.gif").exists()


def test_joints_move_on_straight_lines_and_are_missing_where_either_end_misses_them():
    keys = np.stack([standing(cnose=(0.2, 0.1)), standing(cnose=(0.6, 0.3)), standing("cnose")])
    joints = interpolate(keys, 4)
    assert joints.shape == (9, 15, 2) and joints.dtype == np.float32
    expected = [(0.2, 0.1), (0.3, 0.15), (0.4, 0.2), (0.5, 0.25), (0.6, 0.3)]
    np.testing.assert_allclose(joints[:5, J["cnose"]], expected, rtol=1e-6)
    assert (joints[5:, J["cnose"]] == -1).all()
    np.testing.assert_array_equal(interpolate(keys, 1), keys)


def test_movies_keep_colours_and_odd_sizes(tmp_path):
    frames = [np.full((15, 33, 3), (200, 40 + 10 * i, 40), np.uint8) for i in range(5)]
    write_gif(str(tmp_path / "a.gif"), frames, 10)
    write_mp4(str(tmp_path / "a.mp4"), frames, 10, (33, 15))
    gif = Image.open(str(tmp_path / "a.gif"))
    assert gif.n_frames == 5
    durations = []
    write_gif(str(tmp_path / "fast.gif"), frames * 3, 35)
    with Image.open(str(tmp_path / "fast.gif")) as fast:
        for k in range(15):
            fast.seek(k)
            durations.append(fast.info["duration"])
    assert abs(sum(durations) - 1000 * 15 / 35.0) <= 5
    gif.seek(4)
    assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[4]).max() < 10
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    assert next(reader)["size"] == (34, 16)
    first = np.frombuffer(next(reader), np.uint8).reshape(16, 34, 3).astype(int)
    assert np.abs(first[:15, :33] - frames[0]).mean() < 10
    for write in (lambda path: write_gif(path, frames, 10), lambda path: write_mp4(path, frames, 10, (33, 15))):
        with pytest.raises(UserError, match="nowhere.*cannot be written"):
            write(str(tmp_path / "nowhere" / "a"))
