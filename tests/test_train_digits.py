"""The digits example: its shapes, its gradients, and that a few steps of it learn."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from fastconv.benchmarks import train_digits
from fastconv.benchmarks.train_digits import Adam, cross_entropy, digits, dropout_vjp, forward, initialise


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def data():
    return digits(seed=0)


def loss_and_gradients(params, x, labels):
    logits, backward = forward(params, x)
    loss, grad = cross_entropy(logits, labels)
    return loss, backward(grad)


def in_float64(params, rng):
    """Random biases too: with zero ones the dark corners of the images sit on ReLU's kink."""
    return {
        name: (w.astype(np.float64), bias + rng.uniform(-0.1, 0.1, bias.shape)) for name, (w, bias) in params.items()
    }


def test_parameter_counts_of_the_notes_model(rng):
    counts = {name: w.size + bias.size for name, (w, bias) in initialise(rng).items()}
    assert [counts[f"conv{i}"] for i in (1, 2, 3)] == [160, 8224, 32832]


def test_glorot_weights_stay_within_their_limit(rng):
    w, bias = initialise(rng)["conv2"]
    limit = np.sqrt(6 / (16 * 16 + 32 * 16))  # fan-in and fan-out count the 4x4 window
    assert 0.95 * limit < np.abs(w).max() <= limit
    assert not bias.any()


def test_split_is_disjoint_complete_and_stratified(data):
    assert [len(labels) for _, labels in data] == [1077, 360, 360]
    images = np.concatenate([x for x, _ in data])
    assert len(images) == 1797
    assert images.dtype == np.float32
    for _, labels in data:
        assert np.bincount(labels).min() >= 0.09 * len(labels)


def test_dropout_keeps_the_mean_and_is_off_without_rng(rng):
    x = np.ones((200, 100), np.float32)
    y, pullback = dropout_vjp(x, rng)
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {0, 2}
    assert abs(y.mean() - 1) < 0.02
    np.testing.assert_array_equal(pullback(x), y)
    assert dropout_vjp(x, None)[0] is x


def test_gradients_equal_finite_differences(rng, data):
    """Along a random direction of each layer's weights and biases, in float64."""
    params = in_float64(initialise(rng), rng)
    x, labels = data[0][0][:8].astype(np.float64), data[0][1][:8]
    _, grads = loss_and_gradients(params, x, labels)
    assert grads.keys() >= params.keys()
    for name, pair in params.items():
        for i, value in enumerate(pair):
            direction = rng.standard_normal(value.shape)
            losses = []
            for step in (1e-6, -1e-6):
                moved = [value + step * direction if j == i else other for j, other in enumerate(pair)]
                losses.append(loss_and_gradients(params | {name: moved}, x, labels)[0])
            slope = (losses[0] - losses[1]) / 2e-6
            np.testing.assert_allclose((grads[name][i] * direction).sum(), slope, rtol=1e-5, atol=1e-8, err_msg=name)


def test_gradients_equal_those_of_torch(rng, data):
    torch = pytest.importorskip("torch")
    params = in_float64(initialise(rng), rng)
    x, labels = data[0][0][:8].astype(np.float64), data[0][1][:8]
    loss, grads = loss_and_gradients(params, x, labels)

    leaves = {name: [torch.tensor(a, requires_grad=True) for a in pair] for name, pair in params.items()}
    layer = torch.nn.functional
    h = layer.conv2d(torch.tensor(x), *leaves["conv1"], padding="same").relu()
    h = layer.conv2d(layer.pad(h, (1, 2, 1, 2)), *leaves["conv2"]).relu()  # the odd pixel of "same" lies high
    h = layer.conv2d(h, *leaves["conv3"]).relu()
    h = layer.max_pool2d(h, 2).flatten(1)
    h = layer.linear(h, *leaves["dense1"]).relu()
    h = layer.linear(h, *leaves["dense2"]).relu()
    expected = layer.cross_entropy(layer.linear(h, *leaves["dense3"]), torch.tensor(labels))
    expected.backward()

    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    for name, pair in leaves.items():
        for grad, leaf in zip(grads[name], pair, strict=True):
            np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


def test_loss_falls_within_a_few_steps(rng, data):
    params = initialise(rng)
    adam = Adam(params)
    x, labels = data[0][0][:64], data[0][1][:64]
    losses = []
    for _ in range(20):
        loss, grads = loss_and_gradients(params, x, labels)
        adam.update(params, grads, 2e-3)
        losses.append(loss)
    assert losses[0] == pytest.approx(np.log(10), rel=0.2)  # knows nothing yet
    assert losses[-1] < 0.5 * losses[0]
    assert all(a.dtype == np.float32 for pair in params.values() for a in pair)


def test_command_prints_the_accuracy_and_draws(tmp_path, monkeypatch, capsys, data):
    """One epoch on a hundred images, through the command line."""
    few = tuple((x[:100], labels[:100]) for x, labels in data)
    monkeypatch.setattr(train_digits, "digits", lambda seed: few)
    picture = tmp_path / "new" / "digits.svg"
    monkeypatch.setattr("sys.argv", ["train_digits", "--epochs", "1", "--output", str(picture)])
    train_digits.main()
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert "conv3  64x32x4x4   32832 parameters" in printed
    assert "<svg" in picture.read_text()
