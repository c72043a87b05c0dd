"""Token orders: permutations with inverses on square and rectangular grids, as the reference code visits them."""

import pytest
import torch

from arm_backbone.ops import ScanOrders
from arm_backbone.scan_order import cls_index, grid_orders, inverse_orders, restrict_orders, scan_orders

GRIDS = [(1, 1), (1, 5), (4, 4), (5, 5), (3, 7), (7, 3), (12, 20)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scans", [1, 4])
@pytest.mark.parametrize("cls_token", [None, "middle", "tail"])
def test_orders_are_permutations_with_inverses(grid, scans, cls_token):
    orders = scan_orders(*grid, scans, cls_token)
    length = grid[0] * grid[1] + (cls_token is not None)
    assert orders.shape == (scans, length)
    for order, inverse in zip(orders, inverse_orders(orders), strict=True):
        assert torch.equal(order.sort().values, torch.arange(length))
        assert torch.equal(inverse[order], torch.arange(length))
        assert torch.equal(order[inverse], torch.arange(length))


def test_rectangular_grid_by_hand():
    assert scan_orders(2, 3).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [5, 4, 3, 2, 1, 0],
        [0, 3, 1, 4, 2, 5],
        [5, 2, 4, 1, 3, 0],
    ]


def test_class_token_by_hand():
    # 2 x 2 patches, class token at index 2 of the sequence: patches are 0 1 c 2 3
    assert scan_orders(2, 2, 4, "middle").tolist()[2] == [0, 3, 2, 1, 4]
    assert scan_orders(2, 2, 4, "tail").tolist()[1] == [4, 3, 2, 1, 0]
    assert (cls_index(25, "middle"), cls_index(25, "tail"), cls_index(25, None)) == (12, 25, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((4, 4, 3), "scans=3"), ((0, 4), "empty"), ((4, 4, 4, "head"), "cls_token='head'")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        scan_orders(*arguments)


@pytest.mark.parametrize("scans", [2, 4])
@pytest.mark.parametrize("cls_token", [None, "middle", "tail"])
def test_a_restricted_order_is_the_full_order_filtered(scans, cls_token):
    orders = grid_orders(5, 7, scans, cls_token)
    length = orders.tensor.shape[1]
    kept = torch.rand(3, length).argsort(1)[:, :11].sort(1).values
    restricted = restrict_orders(orders, kept)
    assert ScanOrders(restricted.tensor).tensor.shape == (3, scans, 11)  # permutations
    for image, places in enumerate(kept.tolist()):
        for k, order in enumerate(orders.tensor.tolist()):
            filtered = [token for token in order if token in places]
            assert [places[i] for i in restricted.tensor[image, k].tolist()] == filtered


def test_one_scan_reads_the_kept_tokens_as_they_come():
    kept = torch.tensor([[0, 3, 5], [1, 2, 4]])
    assert restrict_orders(grid_orders(2, 3, 1), kept).tensor.tolist() == [[0, 1, 2]]
