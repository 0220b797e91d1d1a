import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import nn


def test_initialisation_gives_every_layer_mean_0_and_variance_1(graph):
    x = tf.constant(np.random.RandomState(0).normal(3, 5, (8, 16, 16, 6)), tf.float32)
    pass_ = nn.Pass("initialise", initialising=True)
    later = nn.Pass("train")
    outputs = []
    for w in (pass_, later):
        with w.network("net"):
            h = nn.nin(w, x, 5)
            outputs.append([h, nn.conv2d(w, h, 7, stride=2)])
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        first, _ = session.run([outputs[0], pass_.assignments])
        for initial, after in zip(first, session.run(outputs[1])):
            np.testing.assert_allclose(after.mean(axis=(0, 1, 2)), 0, atol=1e-4)
            np.testing.assert_allclose(after.var(axis=(0, 1, 2)), 1, atol=1e-3)
            np.testing.assert_allclose(initial, after, atol=1e-4)


def test_a_layer_is_the_normalised_convolution(graph):
    random = np.random.RandomState(1)
    x = random.normal(size=(2, 4, 4, 3)).astype(np.float32)
    pass_ = nn.Pass("train")
    with pass_.network("net"):
        y = nn.nin(pass_, tf.constant(x), 5)
    V, g, b = tf.trainable_variables()
    values = [random.normal(size=v.shape.as_list()).astype(np.float32) for v in (V, g, b)]
    with tf.Session() as session:
        for variable, value in zip((V, g, b), values):
            variable.load(value, session)
        found = session.run(y)
    expected = values[1] * (x @ (values[0] / np.linalg.norm(values[0], axis=0))) + values[2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_are_numbered_by_kind_in_every_network_and_shared_between_walks(graph):
    x = tf.zeros((1, 4, 4, 4))
    for _ in range(2):
        pass_ = nn.Pass("train")
        for network in ("enc_up", "dec_up"):
            with pass_.network(network):
                nn.residual_block(pass_, nn.downsample(pass_, nn.nin(pass_, x, 4), 4), tf.zeros((1, 2, 2, 6)))
    assert [v.op.name for v in tf.trainable_variables() if v.op.name.endswith("V")] == [
        network + layer for network in ("enc_up/", "dec_up/")
        for layer in ("dense_0/V", "conv2d_0/V", "dense_1/V", "conv2d_1/V")]


def test_upsample_and_downsample_change_size_by_two(graph):
    pass_ = nn.Pass("train")
    with pass_.network("net"):
        assert nn.upsample(pass_, tf.zeros((1, 4, 4, 8)), 3).shape.as_list() == [1, 8, 8, 3]
        assert nn.downsample(pass_, tf.zeros((1, 4, 4, 8)), 3).shape.as_list() == [1, 2, 2, 3]


def noise(seed, step, place="net", name="train", n=1):
    with tf.Graph().as_default(), tf.Session() as session:
        pass_ = nn.Pass(name, step, seed)
        with pass_.network(place):
            tensors = [pass_.normal(tf.zeros((1000,))) for _ in range(n)]
        return session.run(tensors)


def test_noise_is_a_function_of_seed_step_and_place():
    same, = noise(1, 5)
    np.testing.assert_array_equal(same, noise(1, 5)[0])
    others = [noise(2, 5)[0], noise(1, 6)[0], noise(1, 5, place="other")[0], noise(1, 5, name="evaluate")[0],
              noise(1, 5, n=2)[1]]
    for other in others:
        assert abs(np.corrcoef(same, other)[0, 1]) < 0.2
    assert abs(same.mean()) < 0.1 and abs(same.std() - 1) < 0.1


def test_dropout_keeps_the_mean_and_drops_the_share(graph):
    pass_ = nn.Pass("train", drop_prob=0.25)
    with pass_.network("net"):
        y = pass_.dropout.elu(tf.ones((100001,)))
    with tf.Session() as session:
        values = session.run(y * pass_.dropout.scale)
        half = session.run(y, {pass_.drop_prob: 0.5})
    assert abs((values == 0).mean() - 0.25) < 0.01 and abs((half == 0).mean() - 0.5) < 0.01
    np.testing.assert_allclose(values[values > 0], 1 / 0.75, rtol=1e-6)
    for shift in (1, 2, 3, 4):  # neighbours share a random word
        assert abs(np.corrcoef(values[shift:], values[:-shift])[0, 1]) < 0.02


@pytest.mark.parametrize("drop_prob", [0.0005, 0.1, 0.999])
def test_dropout_drops_shares_that_no_byte_has_over_many_steps(graph, drop_prob):
    step = tf.placeholder(tf.int32, ())
    pass_ = nn.Pass("train", step, drop_prob=drop_prob)
    with pass_.network("net"):
        is_0 = tf.equal(pass_.dropout.elu(tf.ones((100, 1000))), 0)
    with tf.Session() as session:
        shares = [session.run(is_0, {step: i}).mean() for i in range(300)]
        scale = session.run(pass_.dropout.scale)
    expected = min(drop_prob, 255 / 256)
    assert abs(np.mean(shares) - expected) < 3 / 256 * 0.5 / 300**0.5 + 1e-4 and abs(scale * (1 - expected) - 1) < 1e-5
    assert np.ptp(shares) < 0.02


def test_the_gradient_of_dropout_is_that_of_what_it_computes(graph):
    pass_ = nn.Pass("train", drop_prob=0.25)
    x = tf.constant(np.linspace(-2, 2, 1000), tf.float32)
    with pass_.network("net"):
        y = pass_.dropout.elu(x)
    gradient, = tf.gradients(tf.reduce_sum(y * y), x)
    with tf.Session() as session:
        x, y, gradient = session.run((x, y, gradient))
        elu = np.where(x > 0, x, np.expm1(x))
        kept = y != 0
        np.testing.assert_allclose(y, np.where(kept, elu, 0), rtol=1e-5, atol=1e-6)
        slope = np.where(x > 0, 1, elu + 1)
        np.testing.assert_allclose(gradient, 2 * y * np.where(kept, slope, 0), rtol=1e-4, atol=1e-5)


def test_a_residual_block_with_dropout_has_the_mean_of_one_without(graph):
    pass_ = nn.Pass("train", drop_prob=0.25)
    x = np.random.RandomState(0).normal(size=(1, 2, 2, 64))
    with pass_.network("net"):
        y = nn.residual_block(pass_, tf.constant(np.tile(x, (4000, 1, 1, 1)), tf.float32)) - x
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        dropped, whole = session.run(y), session.run(y, {pass_.drop_prob: 0.0})
    assert np.abs(dropped.mean(axis=0) - whole[0]).max() < 0.05 * whole.std()
    assert dropped.std(axis=0).min() > 0.1 * whole.std()


@pytest.mark.parametrize("h, w", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_convolutions_of_small_maps_are_convolutions(graph, h, w):
    random = np.random.RandomState(0)
    x, kernel, weights = (tf.constant(random.normal(size=shape), tf.float32)
                          for shape in ((2, h, w, 64), (3, 3, 64, 4), (2, h, w, 4)))
    needed = kernel[1:2, 1:2] if h == w == 1 else kernel
    results = []
    for y in (nn._conv(nn.Pass("train"), x, needed, tf.zeros((4,)), 1),
              tf.nn.conv2d(x, kernel, strides=[1, 1, 1, 1], padding="SAME")):
        results.append([y] + tf.gradients(tf.reduce_sum(weights * y), [x, kernel]))
    assert results[0][0].op.type == "Reshape" and results[0][0].shape.as_list() == [2, h, w, 4]
    with tf.Session() as session:
        for found, expected in zip(*session.run(results)):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, pixels", [((3, 3, 5, 4), 2), ((6, 4), 2), ((3, 3, 5, 4), 1)])
def test_the_gradient_of_normalised_kernels_is_tensorflows_own(graph, shape, pixels):
    """On maps of one pixel the centre of a kernel is all that matters."""
    random = np.random.RandomState(0)
    V = tf.constant(random.normal(size=shape), tf.float32)
    g = tf.constant(random.uniform(0.5, 2, shape[-1]), tf.float32)
    found = nn._reached(V, tf.zeros((1, pixels, pixels, 5))) * nn._over_norm(g, V)
    plain = g * V / tf.sqrt(tf.reduce_sum(tf.square(V), axis=list(range(len(shape) - 1))))
    plain = plain[1:2, 1:2] if pixels == 1 else plain
    weights = tf.constant(random.normal(size=plain.shape.as_list()), tf.float32)
    results = [[kernel] + tf.gradients(tf.reduce_sum(weights * kernel), [V, g]) for kernel in (found, plain)]
    with tf.Session() as session:
        for found, expected in zip(*session.run(results)):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer, h, w, c, is_product, scales_result", [
    (nn.nin, 3, 2, 5, True, False), (nn.nin, 1, 1, 17, True, True),
    (nn.conv2d, 1, 1, 5, True, False), (nn.conv2d, 1, 1, 17, True, True), (nn.conv2d, 2, 2, 5, False, False),
    (nn.conv2d, 2, 2, 64, True, True), (nn.conv2d, 1, 2, 32, True, True), (nn.conv2d, 2, 1, 32, True, True),
    (nn.conv2d, 4, 3, 5, False, False), (nn.conv2d, 4, 3, 30, False, True), (nn.conv2d, 4, 3, 192, True, True)])
def test_layers_are_weight_normalised_convolutions(graph, layer, h, w, c, is_product, scales_result):
    random = np.random.RandomState(0)
    pass_ = nn.Pass("train")
    x, weights = (tf.constant(random.normal(size=(2, h, w, n)), tf.float32) for n in (c, 4))
    with pass_.network("net"):
        y = layer(pass_, x, 4)
    # On maps so small a product is quicker than TensorFlow's convolutions, and scaling the result than the kernel.
    assert is_product == ("Conv2D" not in [op.type for op in graph.get_operations()])
    assert scales_result == (y.op.type == "BiasAdd" and y.op.inputs[0].op.type == "Mul")
    variables = tf.trainable_variables()
    V, g, b = variables
    kernel = V if layer is nn.conv2d else tf.reshape(V, (1, 1, c, 4))
    direction = kernel / tf.sqrt(tf.reduce_sum(tf.square(kernel), axis=[0, 1, 2]))
    plain = g * tf.nn.conv2d(x, direction, strides=[1, 1, 1, 1], padding="SAME") + b
    assert y.shape.as_list() == [2, h, w, 4]
    results = [[y] + tf.gradients(tf.reduce_sum(weights * y), [x] + variables) for y in (y, plain)]
    with tf.Session() as session:
        session.run([variable.assign(random.uniform(0.5, 2, variable.shape)) for variable in variables])
        for found, expected in zip(*session.run(results)):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_dropout_and_noise_can_be_fed_away(graph):
    pass_ = nn.Pass("train", drop_prob=0.25)
    with pass_.network("net"):
        fetches = pass_.dropout.elu(tf.ones((1000,))), pass_.normal(tf.ones((1000,)))
    with tf.Session() as session:
        activations, noise = session.run(fetches, {pass_.drop_prob: 0.0, pass_.noise: 0.0})
    assert (activations == 1).all() and (noise == 0).all()


def test_the_noise_of_workers_is_that_of_one_batch_of_all():
    def noise(n, **settings):
        with tf.Graph().as_default(), tf.Session() as session:
            pass_ = nn.Pass("train", 7, **settings)
            with pass_.network("net"):
                return session.run(pass_.normal(tf.zeros((n, 5))))
    of_workers = np.concatenate([noise(2, worker=i, n_workers=3) for i in range(3)])
    np.testing.assert_array_equal(of_workers, noise(6))


def test_no_dropout_adds_no_operation(graph):
    pass_ = nn.Pass("train")
    x = tf.ones((1, 4, 4, 3))
    with pass_.network("net"):
        nn.elu_conv2d(pass_, x, 3)
    operations = [op for op in graph.get_operations() if op.name.startswith("train/net/")]
    convolution, = [op for op in operations if op.type == "Conv2D"]
    elu = convolution.inputs[0].op
    assert elu.type == "Elu" and elu.inputs[0] is x
    assert not [op for op in operations if "Random" in op.type]


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_stream_keys_fit_64_bits_and_differ(seed):
    keys = {nn.stream_key(seed, place) for place in ("a", "b", "c")}
    assert len(keys) == 3 and all(-2**63 <= key < 2**63 for key in keys)
