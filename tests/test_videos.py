"""Videos: frames, and the poses of one person over time."""
import http.server
import threading

import imageio_ffmpeg
import numpy as np
import pytest
from helpers import exit_code, only_run, standing
from PIL import Image

import main
from common.errors import UserError
from dataset import selection, videos
from dataset.boxes import torso_length
from dataset.index import J
from dataset.selection import Finder
from dataset.videos import Video, bridge, follow, is_video, poses_over_time, smooth
from inference.movies import write_gif, write_mp4

FPS = 25.0
BODY = np.where(standing() < 0, -1, standing().astype(float) * (40, 80))  # in pixels, at the upper left


def at(x, y=0.0, size=1.0):
    return size * BODY + (x, y)


# ---------------------------------------------------------------------------------------------- frames

def frames(n, size=(48, 32)):
    """Frames with a white square that moves to the right."""
    for i in range(n):
        frame = np.zeros((size[1], size[0], 3), np.uint8)
        frame[8:24, 2 + i:14 + i] = (250, 40, 40)
        yield frame


def save_video(path, n=20, fps=10):
    if path.suffix == ".gif":
        write_gif(str(path), list(frames(n)), fps)
    elif path.suffix in (".mp4", ".mov"):
        write_mp4(str(path), frames(n), fps, (48, 32))
    else:
        codec = {".avi": "mpeg4", ".webm": "libvpx", ".mkv": "libx264"}[path.suffix]
        writer = imageio_ffmpeg.write_frames(str(path), (48, 32), fps=fps, codec=codec, ffmpeg_log_level="quiet")
        writer.send(None)
        for frame in frames(n):
            writer.send(frame)
        writer.close()
    return str(path)


@pytest.mark.parametrize("extension", ["mp4", "mov", "avi", "webm", "mkv", "gif"])
def test_videos_of_all_kinds_give_their_frames(tmp_path, extension):
    path = save_video(tmp_path / f"a.{extension}")
    video = Video(path)
    found = list(video)
    assert is_video(path) and abs(video.fps - 10) < 0.1 and abs(video.n_frames - 20) <= 1
    assert abs(len(found) - 20) <= 1 and found[0].shape == (32, 48, 3)
    red = [np.argwhere(frame[..., 0] > 150)[:, 1].mean() for frame in (found[0], found[10])]
    assert abs(red[0] - 7.5) < 2 and abs(red[1] - 17.5) < 2


def test_a_gif_of_one_frame_is_a_picture(tmp_path):
    assert not is_video(save_video(tmp_path / "a.gif", n=1))
    assert not is_video(str(tmp_path / "none.gif")) and not is_video("a.jpg") and is_video("none.MP4")


def test_frames_are_made_smaller_while_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "MAX_SIDE", 24)
    assert next(iter(Video(save_video(tmp_path / "a.mp4")))).shape == (16, 24, 3)


def test_a_playlist_in_disguise_fetches_nothing(tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *unused):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/x"
    secret = save_video(tmp_path / "secret.mp4")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n"
    contents = [playlist.format(url), playlist.format(secret), f"ffconcat version 1.0\nfile '{secret}'\n",
                f"<MPD><BaseURL>{url}</BaseURL></MPD>", url, "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"]
    for i, content in enumerate(contents):
        for extension in ("mp4", "avi", "webm", "gif"):
            path = tmp_path / f"{i}.{extension}"
            path.write_text(content)
            with pytest.raises(UserError, match="cannot be read as a video") as error:
                list(Video(str(path)))
            assert "\n" not in str(error.value)
    server.shutdown()
    assert not asked


def test_damaged_videos_are_refused_or_read_as_far_as_they_go(tmp_path):
    content = (tmp_path / save_video(tmp_path / "a.mp4")).read_bytes()
    for length in (0, 10, 100, len(content) // 2):
        (tmp_path / "b.mp4").write_bytes(content[:length])
        with pytest.raises(UserError, match="b.mp4: cannot be read as a video"):
            list(Video(str(tmp_path / "b.mp4")))


# ---------------------------------------------------------------------------------------------- one person over time

def test_the_person_of_the_first_frame_is_followed_when_others_pass():
    walker = [at(10 + 2 * i, size=1.0) for i in range(60)]
    passer = [at(130 - 2 * i, size=1.1) for i in range(60)]
    people = [[a, b] if i % 2 else [b, a] for i, (a, b) in enumerate(zip(walker, passer))]
    apart = [i for i in range(60) if abs(120 - 4 * i) > 15]
    followed = follow(people, FPS, person=1)
    np.testing.assert_allclose(followed[apart][:len(apart) // 2], np.stack(walker)[apart][:len(apart) // 2])
    np.testing.assert_allclose(follow(people, FPS)[0], passer[0])  # the larger one


def test_nobody_else_is_taken_for_the_person_in_a_short_gap_but_in_a_long_one():
    people = [[at(0)]] * 3 + [[at(200)]] * 20
    followed = follow(people, FPS)
    assert np.isfinite(followed[:3]).all() and np.isnan(followed[3:15]).all() and np.isfinite(followed[16:]).all()


def test_gaps_of_half_a_second_are_bridged_and_longer_ones_repeat_the_last_pose():
    joints = np.stack([at(i) for i in range(100)])
    joints[10:22] = np.nan  # 12 frames: 0.48 s
    joints[40:70] = np.nan
    joints[80:84, J["lwrist"]] = np.nan
    bridged = bridge(joints, FPS)
    np.testing.assert_allclose(bridged[10:22, 0, 0], joints[9, 0, 0] + np.arange(1, 13))
    assert np.isnan(bridged[40:70]).all() and np.isfinite(bridged[80:84]).all()

    people = [[] if np.isnan(pose).all() else [np.where(np.isnan(pose), -1, pose)] for pose in joints]
    poses, notes = poses_over_time([[]] * 5 + people, FPS, aspect=0.5)
    assert poses.shape == (105, 15, 2) and notes == ["35 of 105 frames repeat a pose, as they do not show the person"]
    np.testing.assert_array_equal(poses[:5], np.repeat(poses[5:6], 5, axis=0))
    np.testing.assert_array_equal(poses[45:75], np.repeat(poses[44:45], 30, axis=0))
    assert (np.diff(poses[:40, J["lhip"], 0]) >= 0).all()


def test_one_box_holds_all_poses_so_that_the_person_moves_in_it():
    people = [[at(3 * i)] for i in range(40)]
    poses, _ = poses_over_time(people, FPS, aspect=1.0)
    assert (poses >= 0).all() and (poses < 1).all()
    x = poses[:, J["cnose"], 0]
    assert x[-1] - x[0] > 0.5 and np.ptp(poses[:, J["cnose"], 1]) < 0.01


def test_smoothing_takes_jitter_and_adds_no_lag():
    random, t = np.random.RandomState(0), np.arange(150) / FPS
    way = 20 * np.sin(2 * np.pi * 0.7 * t)
    truth = np.stack([at(100 + x) for x in way])
    noisy = truth + random.normal(0, 1.5, truth.shape)
    smoothed = smooth(noisy, FPS)

    def jitter(joints):
        return np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).mean()

    def error(joints, shift=0):
        shifted = np.roll(joints, -shift, axis=0)[10:-10]
        return np.sqrt(((shifted - truth[10:-10])**2).sum(axis=-1).mean())

    assert jitter(smoothed) < 0.5 * jitter(noisy)
    assert error(smoothed) < 0.8 * error(noisy)
    assert error(smoothed) < min(error(smoothed, shift) for shift in (-1, 1))
    assert torso_length(smoothed[50]) == pytest.approx(torso_length(BODY), rel=0.1)


def test_a_video_without_people_is_refused():
    for people in ([[], []], [[np.full((15, 2), -1.0)]]):
        with pytest.raises(UserError, match="nobody is seen in it with both hips"):
            poses_over_time(people, FPS, aspect=1.0)


# ---------------------------------------------------------------------------------------------- in use

class OfTheRedSquare:
    """In the place of the pose model: somebody stands where frames are red."""

    def __call__(self, image):
        red = np.argwhere(np.asarray(image)[..., 0] > 150)
        if not len(red):
            return []
        (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0) + 1
        return [standing().astype(float) * (right - left, bottom - top) + (left, top)]

    def __exit__(self, *unused):
        pass


def test_an_animation_has_the_videos_frame_rate_and_length(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "Estimator", OfTheRedSquare)
    dance = save_video(tmp_path / "dance.mp4", n=30, fps=12)
    Image.fromarray(next(frames(1))).save(str(tmp_path / "me.png"))
    assert exit_code(main, "--mode", "animate", "--checkpoint", trained[0], "--log_dir", tmp_path / "log",
                     "--appearance", tmp_path / "me.png", "0", "--pose", dance) == 0
    n_frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(only_run(tmp_path / "log") / "animation.mp4"))
    assert n_frames == 30 and abs(seconds - 2.5) < 0.1


def test_a_video_gives_poses_for_transfers_and_no_appearances(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "Estimator", OfTheRedSquare)
    dance = save_video(tmp_path / "dance.mp4", n=5)
    finder = Finder("none")
    chosen = finder.select([dance], "--pose")
    assert chosen.labels == [f"dance_{i:05}" for i in range(5)] and chosen.fps == 10 and chosen.is_own
    with pytest.raises(UserError, match="--appearance: .*expected a picture, found poses alone"):
        finder.select([dance], "--appearance", pictures=True)
    with pytest.raises(UserError, match="--pose: .*expected no other items beside a video"):
        finder.select([dance, dance], "--pose")
