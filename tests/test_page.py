"""The page: its server with good, bad and too many requests, and the page itself in a browser."""
import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import pickle
import re
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile

import imageio_ffmpeg
import numpy as np
import pytest
from helpers import ROOT, mutated, standing, wait_for
from PIL import Image

from common.threads import Superseded, Turns
from dataset.index import J
from dataset.pairs import as_png
from dataset.photos import Photos
from inference.networks import open_network
from inference.page.server import make_app
from inference.page.studio import Studio
from inference.rendering import restored
from training.config import load_config

CASES = int(os.environ.get("VUNET_FUZZ_CASES", "300")) // 3
POSE = standing().tolist()


def studio_of(run, config, find_people=lambda image: []):
    """Yields a Studio of the network in a run folder."""
    from dataset.index import open_index
    config = dict(load_config(config, {}), batch_size=1)
    with open_network(str(run)) as network, restored(network, config) as renderer:
        yield Studio(config, renderer, index=open_index(config), aspect=0.5, find_people=find_people)


@pytest.fixture(scope="module")
def studio(trained):
    yield from studio_of(*trained)


@pytest.fixture
def client(studio):
    return make_app(studio, only_local=True).test_client()


def photo_bytes(width=60, height=90):
    return as_png(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))


def pixels_of(response):
    assert response.status_code == 200, response.data
    return np.asarray(Image.open(io.BytesIO(response.data)))


def render(client, **order):
    return client.post("/render", json=dict({"page": "a page", "shape": POSE}, **order))


def add_photo(client):
    return client.post("/photos", data=photo_bytes(), content_type="image/png").get_json()


def test_a_person_of_the_index_is_rendered_in_the_pose(client, studio):
    person = client.get("/people/from/0").get_json()[0]
    one = pixels_of(render(client, who={"person": person["person"]}))
    assert one.shape == (16, 8, 3)  # the aspect of the network's pictures
    assert (pixels_of(render(client, who={"person": person["person"], "joints": person["joints"]})) == one).all()
    moved = standing(lwrist=(0.9, 0.1)).tolist()
    assert (pixels_of(render(client, who={"person": person["person"]}, shape=moved)) != one).any()
    assert (pixels_of(render(client, who={"person": person["person"], "joints": POSE})) != one).any()


def test_blends_go_from_one_person_to_the_other(client, studio):
    a, b = ({"person": number} for number in studio.people[:2])
    ends = [pixels_of(render(client, who=a, blend=b, share=share)) for share in (0, 0.5, 1)]
    assert (ends[0] == pixels_of(render(client, who=a))).all() and (ends[2] == pixels_of(render(client, who=b))).all()
    assert (ends[1] != ends[0]).any() and (ends[1] != ends[2]).any()


def test_a_part_comes_from_somebody_else(client, studio):
    a, b = ({"person": number} for number in studio.people[:2])
    mixed = pixels_of(render(client, who=a, parts={"head": b})).astype(int)
    alone, other = (pixels_of(render(client, who=who)).astype(int) for who in (a, b))
    assert (mixed != alone).any()
    assert abs(mixed[-3:] - alone[-3:]).max() <= 1 < abs(other[-3:] - alone[-3:]).max()  # at the feet


def test_samples_are_numbered(client):
    one, again, other = (pixels_of(render(client, sample=number)) for number in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


def test_a_photo_without_people_gets_a_figure_to_drag(client):
    found = add_photo(client)
    assert (found["width"], found["height"]) == (60, 90) and "drag the figure" in found["note"]
    assert pixels_of(client.get(f"/photos/{found['photo']}.jpg")).shape == (90, 60, 3)
    who = {"photo": found["photo"], "joints": found["people"][0]}
    one = pixels_of(render(client, who=who))
    who["joints"][J["lwrist"]] = [0.9, 0.2]
    assert (pixels_of(render(client, who=who)) != one).any()


def test_the_pose_of_a_photo_fills_the_network_picture(client):
    found = add_photo(client)
    pose = np.array(client.post("/pose", json={"photo": found["photo"], "joints": found["people"][0]}).get_json())
    assert pose.min() >= 0 and pose.max() < 1 and 0.6 < np.ptp(pose[:, 1]) < 0.9


def test_people_in_photos_are_found(trained):
    people = [standing() * (60, 90), standing("lhip") * (60, 90), standing() * (20, 90)]
    for studio in studio_of(*trained, find_people=lambda image: people):
        found = studio.add_photo(photo_bytes())
        assert found["note"] is None
        assert np.allclose(found["people"], [people[2] / (60, 90), people[0] / (60, 90)], atol=1e-3)  # from the left


def test_corrected_photos_become_a_data_set(client, tmp_path):
    all_found = [add_photo(client) for _ in range(3)]
    photos = [{"photo": found["photo"], "joints": found["people"][0]} for found in all_found]
    response = client.post("/dataset", json={"photos": photos})
    with zipfile.ZipFile(io.BytesIO(response.data)) as archive:
        archive.extractall(str(tmp_path))
    index = pickle.loads((tmp_path / "people" / "index.p").read_bytes())
    assert sorted(index["train"]) == [False, True, True] and len(index["joints"]) == 3
    assert Image.open(str(tmp_path / "people" / index["imgs"][0])).size == (256, 256)


@pytest.mark.parametrize("kind, start", [("gif", b"GIF89a"), ("mp4", b"\0\0\0")])
def test_a_drag_becomes_an_animation(client, studio, kind, start):
    frames = [{"shape": standing(lwrist=(0.75, y)).tolist()} for y in (0.5, 0.4, 0.3)]
    order = {"page": "a page", "who": {"person": studio.people[0]}, "frames": frames, "format": kind, "fps": 25}
    response = client.post("/animation", json=order)
    assert response.status_code == 200 and response.data.startswith(start)


def test_bad_requests_are_refused_with_one_line(client, studio):
    person, found = {"person": studio.people[0]}, add_photo(client)
    who = {"photo": found["photo"], "joints": found["people"][0]}
    orders = [{}, {"who": None}, {"who": 3}, {"who": {"person": True}}, {"who": {"person": -1}},
              {"who": {"photo": "x"}}, {"who": {"photo": ["x"]}}, {"who": {"photo": found["photo"]}},
              {"who": dict(person, joints=POSE[:-1])},
              {"who": person, "shape": None}, {"who": person, "shape": [[float("nan"), 0]] * 15},
              {"who": person, "shape": [[1e300, 0]] * 15}, {"who": person, "shape": [["a", 0]] * 15},
              {"who": person, "shape": standing("lhip").tolist()}, {"who": person, "blend": person, "share": 2},
              {"who": person, "blend": 1, "share": 1}, {"who": person, "parts": {"tail": person}},
              {"who": person, "parts": [person]}, {"sample": -1}, {"sample": "a"}, {"sample": float("inf")},
              {"who": {"photo": found["photo"], "joints": [[0.5, 0.5]] * 15}}]
    for order in orders:
        response = render(client, **order)
        assert response.status_code in (400, 410), (order, response.data)
        assert response.data.count(b"\n") == 1 and 10 < len(response.data) < 500
    frames = [{"shape": POSE}]
    for more in ({"frames": [], "format": "gif", "fps": 25}, {"frames": frames, "format": "../x", "fps": 25},
                 {"frames": frames, "format": "gif", "fps": 0}, {"frames": [1], "format": "gif", "fps": 25}):
        assert client.post("/animation", json=dict(more, who=person)).status_code == 400
    for photos in (None, [], [1], [{"photo": found["photo"]}], 501 * [who]):
        assert client.post("/dataset", json={"photos": photos}).status_code == 400
    assert client.post("/dataset", json={"photos": [{"photo": "x"}]}).status_code == 410
    assert client.post("/render", data="{}", content_type="text/plain").status_code == 400
    assert client.post("/render", data="[" * 100000, content_type="application/json").status_code == 400
    assert client.post("/render", data=b"{" + b" " * 2**20, content_type="application/json").status_code == 400
    for photo in (b"GIF", photo_bytes(2000, 2), as_png(np.zeros((9, 9, 3), np.uint8))):
        response = client.post("/photos", data=photo, content_type="image/gif")
        assert response.status_code == 400 and b"<_io" not in response.data
    assert client.post("/photos", data=b"x" * 20000001, content_type="image/png").status_code == 413
    assert client.get("/people/0.jpg").status_code == 400  # an image for training
    for url in ("/../main.py", "/page.py", "/photos/..%2F..%2Fconfig.yaml.jpg", "/people/-1.jpg"):
        assert client.get(url).status_code in (400, 404)


def test_no_answer_has_a_path_of_the_server(client, studio, monkeypatch, capsys):
    monkeypatch.setattr(studio.index, "folder", "/secret")
    studio._latents.cache_clear()
    for response in (client.get(f"/people/{studio.people[0]}.jpg"), render(client, who={"person": studio.people[0]})):
        assert response.status_code == 400 and response.data == b"person %d: cannot be read\n" % studio.people[0]
    assert "/secret" in capsys.readouterr().err  # for whoever runs it


def test_data_sets_at_once_do_not_disturb_each_other(client, studio):
    found, folder = add_photo(client), os.getcwd()
    photos = [{"photo": found["photo"], "joints": found["people"][0]}] * 3
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        contents = list(pool.map(lambda _: studio.data_set(photos), range(6)))
    assert all(len(zipfile.ZipFile(io.BytesIO(content)).namelist()) == 5 for content in contents)
    assert os.getcwd() == folder


def test_long_requests_leave_threads_for_others(studio, monkeypatch):
    client, enough = make_app(studio, only_local=True).test_client(), threading.Event()
    monkeypatch.setattr(studio, "data_set", lambda photos: enough.wait(20) and b"")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        app = client.application
        busy = [pool.submit(lambda: app.test_client().post("/dataset", json={}).status_code) for _ in range(3)]
        wait_for(lambda: client.post("/dataset", json={}).status_code == 429)
        assert client.get("/network").status_code == 200
        enough.set()
        assert [one.result() for one in busy] == [200, 200, 200]


def test_other_sites_are_kept_out(client):
    assert client.get("/network", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/network", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/network", headers={"Origin": "http://evil.example"}).status_code == 403
    for host in ("[::1]:80", "[::1]", "127.0.0.2:8000"):
        assert client.get("/network", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


def test_the_oldest_photos_make_room(monkeypatch):
    photos, image = Photos(), Image.open(io.BytesIO(photo_bytes()))
    first = photos.add(image)
    monkeypatch.setattr("dataset.photos.MAX_BYTES", int(2.5 * len(photos.jpeg(first))))
    names = [first] + [photos.add(image) for _ in range(3)]
    with pytest.raises(Exception, match="no longer"):
        photos.jpeg(names[1])
    assert photos.image(names[3]).size == (60, 90)


def test_of_the_waiting_requests_of_a_page_the_newest_is_answered():
    turns, done = Turns(), []

    def work(number, page):
        try:
            with turns.of(page):
                done.append(number)
        except Superseded:
            done.append(None)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        with turns.of("one"):
            waiting = []
            for number, page in enumerate(["one", "one", "two", "one", "two"]):
                waiting.append(pool.submit(work, number, page))
                time.sleep(0.05)
            assert done == [None, None, None]  # at once, not in their turn
        concurrent.futures.wait(waiting)
    assert sorted(done[3:]) == [3, 4] and not turns._newest


def test_hostile_requests(client, studio, trained):
    """Mutations of good requests are answered or refused with one line that names no folder, and the page goes on."""
    folders = [folder.encode() for folder in (ROOT, sys.prefix, str(trained[0]), os.path.dirname(str(trained[1])))]
    random, found = np.random.RandomState(0), add_photo(client)
    who = {"photo": found["photo"], "joints": found["people"][0]}
    good = [("/render", {"page": "p", "shape": POSE, "who": who, "blend": {"person": studio.people[0]}, "share": 0.5}),
            ("/render", {"page": "p", "shape": POSE, "who": who, "parts": {"head": {"person": studio.people[0]}}}),
            ("/render", {"page": "p", "shape": POSE, "sample": 3}), ("/pose", who), ("/dataset", {"photos": [who]}),
            ("/animation", {"who": who, "frames": [{"shape": POSE}] * 2, "format": "gif", "fps": 25})]
    bodies = [(url, json.dumps(body).encode(), "application/json") for url, body in good]
    bodies.append(("/photos", photo_bytes(), "image/png"))
    counts = {200: 0, 400: 0}
    for i in range(CASES):
        url, body, kind = bodies[i % len(bodies)]
        response = client.post(url, data=mutated(random, body), content_type=kind)
        counts[200 if response.status_code == 200 else 400] += 1
        if response.status_code != 200:
            assert response.status_code in (400, 410)
            assert response.data.count(b"\n") == 1 and b"Traceback" not in response.data
            assert not any(folder in response.data for folder in folders)
    assert counts[400] > CASES // 4
    assert pixels_of(render(client, who=who)).shape == (16, 8, 3)


# ---------------------------------------------------------------------------------------------- edges

@pytest.fixture(scope="module")
def edge_studio(trained_on_bags):
    yield from studio_of(*trained_on_bags)


def test_a_drawing_is_rendered(edge_studio):
    client = make_app(edge_studio, only_local=True).test_client()
    about, number = client.get("/network").get_json(), edge_studio.people[0]
    assert not about["draws_joints"] and not about["needs_joints"] and about["parts"] == []
    edges = client.get(f"/people/{number}.png").data
    with_edges = dict(who={"person": number}, shape=base64.b64encode(edges).decode())
    one = pixels_of(render(client, **with_edges))
    assert (one != pixels_of(render(client, **dict(with_edges, shape=base64.b64encode(photo_bytes()).decode())))).any()
    found = add_photo(client)
    assert found["people"] == [] and found["note"] is None
    assert (pixels_of(render(client, **dict(with_edges, who={"photo": found["photo"]}))) != one).any()
    tall = base64.b64encode(as_png(np.zeros((1025, 1, 3), np.uint8))).decode()  # would take long to shrink
    for shape in (POSE, None, "x", "", "%%%", base64.b64encode(b"no image").decode(), tall):
        assert render(client, **dict(with_edges, shape=shape)).status_code == 400
    assert render(client, **dict(with_edges, parts={"head": {"person": number}})).status_code == 400


# ---------------------------------------------------------------------------------------------- as a process

def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def address(program, trained):
    """The URL of a page that a process of its own serves."""
    with served(program, trained[0]) as url:
        yield url


@contextlib.contextmanager
def served(program, run):
    """The URL of a page for the network in a run folder."""
    port = free_port()
    process = program.start("--mode", "page", "--checkpoint", run, "--port", port)
    line = process.stdout.readline()
    assert re.match(rf"the page is at http://127.0.0.1:{port}/", line), line + process.stderr.read()
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in stderr, stderr


def post(url, value):
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_200_requests_at_once_are_all_answered(address):
    order = {"page": "one", "shape": POSE, "sample": 1}
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(lambda number: post(f"{address}/render", order), range(200)))
    assert set(statuses) <= {200, 409} and statuses.count(200) >= 1
    assert post(f"{address}/render", order) == 200
    for announced, sent in ((20000001, 20000001), (50 * 10**6, 0)):
        connection = http.client.HTTPConnection(address.split("/")[-1], timeout=60)
        connection.putrequest("POST", "/photos")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", str(announced))
        connection.endheaders(b"x" * sent)
        assert connection.getresponse().status == 413


def test_a_port_in_use_is_named(program, trained):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        result = program("--mode", "page", "--checkpoint", trained[0], "--port", port)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and f"--port {port}" in result.stderr


# ---------------------------------------------------------------------------------------------- in a browser

@pytest.fixture
def browser(tmp_path):
    """Chromium, driven by Selenium; what it downloads goes to a folder."""
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium with its driver; on Debian, apt install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--window-size=1400,1200"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.set_script_timeout(30)
    yield browser
    browser.quit()


class Page:
    """What a test does on the page."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        wait_for(self.picture)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def picture(self):
        """The bytes of the picture that is shown, or None."""
        return base64.b64decode(self.browser.execute_async_script("""
            const url = document.getElementById("result").src, done = arguments[0];
            if (!url) { done(""); return; }
            fetch(url).then((answer) => answer.blob()).then((blob) => {
              const reader = new FileReader();
              reader.onload = () => done(reader.result.split(",")[1]);
              reader.readAsDataURL(blob);
            });""")) or None

    def changes(self, action):
        """Whether the picture is another one within two seconds of an action."""
        before = self.picture()
        action()
        return wait_for(lambda: (self.picture() or before) != before, seconds=2.0)

    def drag(self, selector, x, y, kind="mouse"):
        """Drags an element with a "mouse", a "pen" or a finger ("touch")."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput
        actions = ActionBuilder(self.browser, mouse=PointerInput(kind, kind), duration=50)
        pointer = actions.pointer_action.move_to(self.find(selector)).pointer_down()
        for _ in range(5):
            pointer.move_by(x / 5, y / 5)
        pointer.pointer_up()
        actions.perform()

    def drop(self, selector, path):
        """Drops a file on an element, as from the desktop."""
        box = self.find(selector).rect
        for kind in ("dragEnter", "dragOver", "drop"):
            self.browser.execute_cdp_cmd("Input.dispatchDragEvent", {
                "type": kind, "x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2,
                "data": {"items": [], "files": [str(path)], "dragOperationsMask": 1}})

    def joint(self, figure, name):
        return self.find(f"#{figure} .joint[data-joint={name}]")

    def assert_no_errors(self):
        assert [line for line in self.browser.get_log("browser") if line["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_the_page_in_a_browser(address, browser, tmp_path):
    page = Page(browser, address)
    assert page.changes(lambda: page.find("#people li:nth-child(3) button").click())
    assert page.changes(lambda: page.drag("#pose .joint[data-joint=lwrist]", 60, -90))

    wrist = page.joint("pose", "rwrist")
    assert "right wrist" in wrist.get_attribute("aria-label")
    browser.execute_script("arguments[0].focus()", wrist)
    assert page.changes(lambda: browser.switch_to.active_element.send_keys(10 * "\ue013"))  # the up arrow
    assert browser.switch_to.active_element.get_attribute("data-joint") == "rwrist"
    assert page.changes(lambda: page.find("#mirror").click())
    assert page.changes(lambda: page.find("#undo-pose").click())

    photo = tmp_path / "me.png"
    photo.write_bytes(photo_bytes(200, 300))
    assert page.changes(lambda: page.find("#files").send_keys(str(photo)))
    page.find("#remove").click()
    assert page.changes(page.find("#people li:nth-child(2) button").click)
    assert page.changes(lambda: page.drop("#drop", photo))
    wait_for(lambda: "drag the figure" in page.find("#message").text)
    assert page.changes(lambda: page.drag("#editor-joints .joint[data-joint=lshoulder]", 40, 30))
    assert page.changes(lambda: page.find("#take").click())

    for dot in browser.find_elements("css selector", "#pose .joint"):  # each can be grabbed where it is seen
        assert browser.execute_script("""const box = arguments[0].getBoundingClientRect();
            return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === arguments[0];""", dot)

    page.find("#save").click()
    saved = tmp_path / "downloads" / "vunet.png"
    wait_for(lambda: saved.exists() and saved.read_bytes())
    assert saved.read_bytes() == page.picture()
    page.find("#download").click()
    wait_for((tmp_path / "downloads" / "people.zip").exists)
    page.find("#remove").click()
    wait_for(lambda: not page.find("#download").is_displayed())
    page.assert_no_errors()


@pytest.mark.slow
def test_fingers_and_pens_drag_joints(address, browser):
    page = Page(browser, address)
    for kind in ("touch", "pen"):
        before = page.joint("pose", "lwrist").get_attribute("aria-label")
        assert page.changes(lambda kind=kind: page.drag("#pose .joint[data-joint=lwrist]", 30, -60, kind))
        assert page.joint("pose", "lwrist").get_attribute("aria-label") != before
    page.assert_no_errors()


@pytest.mark.slow
def test_a_drag_is_recorded(address, browser, tmp_path):
    page = Page(browser, address)
    page.find("#record").click()
    page.drag("#pose .joint[data-joint=lwrist]", 30, -30)
    time.sleep(0.5)
    page.find("#record").click()
    for kind in ("gif", "mp4"):
        page.find(f"#{kind}").click()
        saved = tmp_path / "downloads" / f"vunet.{kind}"
        wait_for(lambda saved=saved: saved.exists() and saved.read_bytes())
    assert Image.open(str(tmp_path / "downloads" / "vunet.gif")).n_frames > 1
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "downloads" / "vunet.mp4"))[0] > 1
    page.assert_no_errors()


@pytest.mark.slow
def test_lines_are_drawn_in_a_browser(program, trained_on_bags, browser):
    with served(program, trained_on_bags[0]) as address:
        page = Page(browser, address)
        drawing = page.find("#drawing")
        assert page.changes(page.find("#clear").click)
        for kind in ("mouse", "touch", "pen"):
            assert page.changes(lambda kind=kind: page.drag("#drawing", 80, 60, kind))
            assert page.changes(page.find("#undo-drawing").click)
        browser.execute_script("arguments[0].focus()", drawing)
        assert page.changes(lambda: drawing.send_keys(" " + 5 * "\ue014"))  # the pen down, then the right arrow
        assert page.changes(page.find("#people li:nth-child(2) button").click)
        assert page.changes(page.find("#take").click)
        page.assert_no_errors()
