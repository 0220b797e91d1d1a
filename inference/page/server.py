"""The mode page: a page in the browser on which joints are dragged, or edges drawn, and the picture follows.

It may face strangers. What they send is checked by the Studio, and never taken for a path.
"""
import contextlib
import functools
import ipaddress
import json
import os
import re
import threading

import flask
import waitress
import werkzeug.exceptions

from common.errors import UserError, shown
from common.threads import Superseded, Turns
from dataset.index import open_index
from dataset.pairs import as_png
from dataset.photos import Gone
from dataset.poses import Estimator
from inference.page.studio import MAX_BYTES, Studio
from inference.rendering import restored

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
FOLDER = os.path.dirname(os.path.abspath(__file__))
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
MAX_ORDER = 2**20  # bytes of a request without frames: JSON takes many times its size in memory
MAX_LONG = 3  # requests at once that take long, so that threads are left for the others
PEOPLE_AT_ONCE = 60
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
           "Cross-Origin-Resource-Policy": "same-origin",
           "Content-Security-Policy": "default-src 'self' blob: data:; script-src 'self'; frame-ancestors 'none'"}
PLAIN, JSON = "text/plain; charset=utf-8", "application/json"


def serve(options, config):
    """Serves the page until a signal comes. Raises UserError where that cannot begin."""
    host, port = options.host or DEFAULT_HOST, options.port or DEFAULT_PORT
    with restored(options.network, config) as renderer, Estimator() as find_people:
        studio = Studio(config, renderer, index=index_with_people(config), aspect=options.network.aspect(config),
                        draws_lines=options.network.draws_lines(), find_people=find_people)
        app = make_app(studio, only_local=is_loopback(host))
        try:
            # Without poll, descriptors beyond 1,024 would end the server.
            server = waitress.create_server(app, host=host, port=port, threads=8, connection_limit=300, ident=None,
                                            asyncore_use_poll=True, max_request_body_size=2 * MAX_BYTES)
        except (OSError, ValueError) as error:
            raise UserError(f"--host {shown(host)}, --port {port}: cannot be listened on: {error}")
        if not is_loopback(host):
            print("warning: whoever reaches this address can use the page and see the test people of the index")
        print(f"the page is at http://{f'[{host}]' if ':' in host else host}:{port}/ and Ctrl-C ends it", flush=True)
        server.run()


def index_with_people(config):
    """The Index of a config, or None where it has no test people to show."""
    if not os.path.isfile(config["data_index"]):
        return None
    try:
        index = open_index(config)
        index.usable("test")
        return index
    except UserError as error:
        print(f"the page shows no test people: {error}", flush=True)
        return None


def is_loopback(host):
    """Whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(studio, only_local):
    """The Flask application. only_local: whether requests must call their host by a name of this machine."""
    app = flask.Flask(__name__, static_folder=None)
    app.before_request(functools.partial(refuse, only_local))
    app.after_request(add_headers)
    for kind, status in ((UserError, 400), (Gone, 410)):
        app.register_error_handler(kind, lambda error, status=status: answer(f"{error}\n", status=status))
    app.register_error_handler(Superseded, lambda error: answer("a newer request of this page has come\n", status=409))
    app.register_error_handler(werkzeug.exceptions.HTTPException,
                               lambda error: answer(f"{error.description.split('. ')[0]}\n", status=error.code))
    for url, name in FILES.items():
        app.add_url_rule(url, name, functools.partial(flask.send_from_directory, FOLDER, name))
    for method, url, view in routes(studio):
        app.add_url_rule(url, url, view, methods=[method])
    return app


def routes(studio):
    """[(method, URL, what answers it)]."""
    turns, places = Turns(), threading.BoundedSemaphore(MAX_LONG)

    @contextlib.contextmanager
    def long_request():
        if not places.acquire(blocking=False):
            flask.abort(429, "the server is busy, try again")
        try:
            yield
        finally:
            places.release()

    def add_photo():
        kind = flask.request.mimetype
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise UserError(f"Content-Type: expected that of an image, found {shown(kind)}")
        with long_request():
            return as_json(studio.add_photo(flask.request.get_data()))

    def render():
        wanted = order()
        with turns.of(shown(wanted.get("page"))):
            return answer(as_png(studio.render(wanted)), "image/png")

    def animation():
        with long_request():
            wanted, ticket = order(MAX_BYTES), object()
            content = studio.animation(wanted, lambda: turns.of(ticket))
            return answer(content, {"gif": "image/gif", "mp4": "video/mp4"}[wanted["format"]])

    def data_set():
        with long_request():
            return answer(studio.data_set(order().get("photos")), "application/zip")

    return [("GET", "/network", lambda: as_json(studio.about())),
            ("GET", "/people/from/<int:start>", lambda start: as_json(studio.some_people(start, PEOPLE_AT_ONCE))),
            ("GET", "/people/<int:number>.jpg", lambda number: answer(studio.person(number), "image/jpeg")),
            ("GET", "/people/<int:number>.png", lambda number: answer(studio.person_shape(number), "image/png")),
            ("POST", "/photos", add_photo),
            ("GET", "/photos/<name>.jpg", lambda name: answer(studio.photos.jpeg(name), "image/jpeg")),
            ("POST", "/pose", lambda: as_json(studio.pose_of(order()))),
            ("POST", "/render", render), ("POST", "/animation", animation), ("POST", "/dataset", data_set)]


def answer(content, kind=PLAIN, status=200):
    return flask.Response(content, status, content_type=kind)


def as_json(value):
    return answer(json.dumps(value), JSON)


def add_headers(response):
    response.headers.update(HEADERS)
    return response


def refuse(only_local):
    """An answer for requests that are too large, or that other sites have the browser send; else None."""
    host, origin = flask.request.headers.get("Host", ""), flask.request.headers.get("Origin")
    if only_local and not is_loopback(re.sub(r":\d*$", "", host) if not host.endswith("]") else host):
        # DNS rebinding: a stranger's name that leads here
        return answer(f"Host: expected a name of this machine, such as localhost, found {shown(host)}\n", status=403)
    if origin is not None and origin.split("://", 1)[-1] != host:
        return answer(f"Origin: expected this page, found {shown(origin)}\n", status=403)
    if (flask.request.content_length or 0) > MAX_BYTES:
        return answer(f"expected at most {MAX_BYTES} bytes\n", status=413)


def order(max_bytes=MAX_ORDER):
    """The JSON object of a request. Raises UserError."""
    if flask.request.mimetype != JSON:  # other sites may have forms sent, but not this
        raise UserError(f"Content-Type: expected {JSON}, found {shown(flask.request.mimetype)}")
    content = flask.request.get_data()
    if len(content) > max_bytes:
        raise UserError(f"expected at most {max_bytes} bytes, found {len(content)}")
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UserError("expected JSON")
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found {shown(value)}")
    return value
