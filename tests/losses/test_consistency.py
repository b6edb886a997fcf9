import pytest
import torch

from nnunet_semicon.losses.consistency import sigmoid_cross_entropy, sigmoid_mse, softmax_cross_entropy, softmax_mse
from tests.losses import reference
from tests.losses.reference import VALUE_TOLERANCE

LOSSES = [(softmax_mse, reference.softmax), (sigmoid_mse, reference.sigmoid)]
FUNCTIONS = [softmax_mse, sigmoid_mse]


def logits(*shape, seed=0, dtype=torch.float64):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize(("function", "probabilities"), LOSSES)
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5), (3, 2, 4, 5), (2, 3, 3, 4, 2), (1, 1, 4, 4)])
@pytest.mark.parametrize("dtype", VALUE_TOLERANCE)
@pytest.mark.parametrize("autocast", [False, True])
def test_equals_the_loops(function, probabilities, shape, dtype, autocast):
    student, teacher = logits(*shape, dtype=dtype), logits(*shape, seed=1, dtype=dtype)
    expected = reference.mean_squared_distance(student, teacher, probabilities)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = function(student, teacher)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=VALUE_TOLERANCE[dtype], abs=VALUE_TOLERANCE[dtype])


def test_opposite_certain_predictions():
    student = torch.tensor([[50.0, -50.0, -50.0]])
    teacher = torch.tensor([[-50.0, 50.0, -50.0]])
    assert softmax_mse(student, teacher).item() == pytest.approx(2)
    assert sigmoid_mse(student, teacher).item() == pytest.approx(2)
    assert sigmoid_mse(student, -student).item() == pytest.approx(3)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_zero_for_equal_logits_only(function):
    student = logits(2, 3, 4, 4)
    assert function(student, student.clone()) == 0
    assert function(student, student + logits(2, 3, 4, 4, seed=1)) > 1e-3


def test_softmax_ignores_a_common_shift_and_sigmoid_does_not():
    student, teacher = logits(2, 3, 4, 4), logits(2, 3, 4, 4, seed=1)
    assert softmax_mse(student + 5, teacher).item() == pytest.approx(softmax_mse(student, teacher).item())
    assert abs(sigmoid_mse(student + 5, teacher) - sigmoid_mse(student, teacher)) > 1e-2


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradient_reaches_the_student_and_never_the_teacher(function):
    student, teacher = logits(2, 3, 4, 4).requires_grad_(), logits(2, 3, 4, 4, seed=1).requires_grad_()
    function(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    nearer = student.detach() - student.grad
    assert function(nearer, teacher) < function(student, teacher)
    assert torch.autograd.gradcheck(lambda s: function(s, teacher), student)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_and_an_empty_batch_are_finite(function, dtype):
    extreme = torch.tensor([[3e4, -3e4], [-3e4, 3e4]], dtype=dtype).requires_grad_()
    loss = function(extreme, extreme.flip(0))
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert extreme.grad.isfinite().all()

    empty = torch.empty(0, 3, 4, 4, dtype=dtype, requires_grad=True)
    loss = function(empty, empty)
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refuses_shapes_that_would_broadcast(function):
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        function(logits(2, 3, 4, 4), logits(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("function", "probabilities"),
    [(softmax_cross_entropy, reference.softmax), (sigmoid_cross_entropy, reference.sigmoid)],
)
@pytest.mark.parametrize("dtype", VALUE_TOLERANCE)
def test_cross_entropy_equals_the_loops(function, probabilities, dtype):
    student, teacher = logits(2, 3, 4, 2, dtype=dtype), logits(2, 3, 4, 2, seed=1, dtype=dtype).requires_grad_()
    expected = reference.mean_cross_entropy(student, teacher.detach(), probabilities, function is sigmoid_cross_entropy)
    loss = function(student.requires_grad_(), teacher)
    assert loss.item() == pytest.approx(expected, rel=VALUE_TOLERANCE[dtype])
    loss.backward()
    assert teacher.grad is None
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(lambda s: function(s, teacher), student)


@pytest.mark.parametrize("function", [softmax_cross_entropy, sigmoid_cross_entropy])
def test_cross_entropy_of_certain_and_of_no_predictions(function):
    certain = torch.tensor([[200.0, -200.0]], dtype=torch.float16)
    assert function(certain, certain).item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(function(certain, -certain))
    empty = torch.zeros(0, 2, 4, requires_grad=True)
    function(empty, empty).backward()
    assert function(empty, empty) == 0
    with pytest.raises(ValueError, match="same shape"):
        function(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3))
