"""The mode page: a page in the browser on which joints are dragged, or edges drawn, and the picture follows.

It may face strangers. What they send is checked by the Studio, kept in memory, and never taken for a path.
"""
import functools
import json
import os

import flask
import waitress
import werkzeug.exceptions

from common.errors import UserError, shown
from common.threads import Superseded, Turns
from dataset.index import open_index
from dataset.pairs import as_png
from dataset.poses import Estimator
from inference.page.studio import MAX_BYTES, Studio
from inference.rendering import restored

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
FOLDER = os.path.dirname(os.path.abspath(__file__))
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
PEOPLE_AT_ONCE = 60
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")  # of this machine, in URLs
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
           "Content-Security-Policy": "default-src 'self' blob: data:; script-src 'self'"}
PLAIN, JSON = "text/plain; charset=utf-8", "application/json"


def serve(options, config):
    """Serves the page until a signal comes. Raises UserError where that cannot begin."""
    host, port = options.host or DEFAULT_HOST, options.port or DEFAULT_PORT
    name = f"[{host}]" if ":" in host else host
    index = open_index(config) if os.path.isfile(config["data_index"]) else None
    # Pictures are made one at a time: in a batch the others would be made for nothing.
    with restored(options.network, dict(config, batch_size=1)) as renderer, Estimator() as find_people:
        studio = Studio(config, renderer, index=index, aspect=options.network.aspect(config),
                        draws_lines=options.network.draws_lines(), find_people=find_people)
        app = make_app(studio, only_local=name in LOCAL_NAMES)
        try:
            server = waitress.create_server(app, host=host, port=port, threads=8, connection_limit=1000, ident=None,
                                            max_request_body_size=MAX_BYTES)
        except (OSError, ValueError) as error:
            raise UserError(f"--host {shown(host)}, --port {port}: cannot be listened on: {error}")
        if name not in LOCAL_NAMES:
            print("warning: whoever reaches this address can use the page and see the test people of the index")
        print(f"the page is at http://{name}:{port}/ and Ctrl-C ends it", flush=True)
        server.run()


def make_app(studio, only_local):
    """The Flask application. only_local: whether requests must call their host by a name of this machine."""
    app = flask.Flask(__name__, static_folder=None)
    app.before_request(functools.partial(refuse_other_sites, only_local))
    app.after_request(add_headers)
    app.register_error_handler(UserError, lambda error: answer(f"{error}\n", status=400))
    app.register_error_handler(Superseded, lambda error: answer("a newer request of this page has come\n", status=409))
    app.register_error_handler(werkzeug.exceptions.HTTPException,
                               lambda error: answer(f"{error.name}\n", status=error.code))
    for url, name in FILES.items():
        app.add_url_rule(url, name, functools.partial(flask.send_from_directory, FOLDER, name))
    for method, url, view in routes(studio):
        app.add_url_rule(url, url, view, methods=[method])
    return app


def routes(studio):
    """[(method, URL, what answers it)]."""
    turns = Turns()

    def add_photo():
        kind = flask.request.mimetype
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise UserError(f"Content-Type: expected that of an image, found {shown(kind)}")
        return as_json(studio.add_photo(flask.request.get_data()))

    def render():
        wanted = order()
        with turns.of(shown(wanted.get("page"))):
            return answer(as_png(studio.render(wanted)), "image/png")

    def animation():
        wanted, nobody_elses = order(), object()
        content = studio.animation(wanted, lambda: turns.of(nobody_elses))
        return answer(content, {"gif": "image/gif", "mp4": "video/mp4"}[wanted["format"]])

    return [("GET", "/network", lambda: as_json(studio.about())),
            ("GET", "/people/from/<int:start>", lambda start: as_json(studio.some_people(start, PEOPLE_AT_ONCE))),
            ("GET", "/people/<int:number>.jpg", lambda number: answer(studio.person(number), "image/jpeg")),
            ("GET", "/people/<int:number>.png", lambda number: answer(studio.person_shape(number), "image/png")),
            ("POST", "/photos", add_photo),
            ("GET", "/photos/<name>.jpg", lambda name: answer(studio.photos.jpeg(name), "image/jpeg")),
            ("POST", "/pose", lambda: as_json(studio.pose_of(order()))),
            ("POST", "/render", render),
            ("POST", "/animation", animation),
            ("POST", "/dataset", lambda: answer(studio.data_set(order().get("photos")), "application/zip"))]


def answer(content, kind=PLAIN, status=200):
    return flask.Response(content, status, content_type=kind)


def as_json(value):
    return answer(json.dumps(value), JSON)


def add_headers(response):
    response.headers.update(HEADERS)
    return response


def refuse_other_sites(only_local):
    """An answer for requests that other sites have the browser send, or None."""
    host, origin = flask.request.headers.get("Host", ""), flask.request.headers.get("Origin")
    if only_local and host.rsplit(":", 1)[0] not in LOCAL_NAMES:  # a stranger's name that leads here, DNS rebinding
        return answer(f"Host: expected one of {', '.join(LOCAL_NAMES)}, found {shown(host)}\n", status=403)
    if origin is not None and origin.split("://", 1)[-1] != host:
        return answer(f"Origin: expected this page, found {shown(origin)}\n", status=403)
    return None


def order():
    """The JSON object of a request. Raises UserError."""
    if flask.request.mimetype != JSON:  # other sites may have forms sent, but not this
        raise UserError(f"Content-Type: expected {JSON}, found {shown(flask.request.mimetype)}")
    try:
        value = json.loads(flask.request.get_data().decode("utf-8"))
    except (ValueError, RecursionError):
        raise UserError("expected JSON")
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found {shown(value)}")
    return value
