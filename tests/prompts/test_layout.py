"""Layout: any rows, any padding, any numbers of virtual tokens."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from peftcore.prompts.columns import Columns
from peftcore.prompts.layout import Layout, padding_on_the_left, positions_of


@st.composite
def layouts(draw):
    """A layout and the ids of its rows; ids are their places, counted over the whole batch."""
    rows, slots, length = draw(st.integers(1, 4)), draw(st.integers(0, 4)), draw(st.integers(1, 5))
    number = st.just([slots] * rows) | st.lists(st.integers(0, slots), min_size=rows, max_size=rows)
    used = torch.arange(slots) >= slots - torch.tensor(draw(number))[:, None]
    padding = draw(st.none() | st.lists(st.integers(0, length), min_size=rows, max_size=rows).map(torch.tensor))
    ids = torch.arange(1, rows * length + 1).reshape(rows, length)
    known = bool(used.all()) and draw(st.booleans())
    return Layout(used, padding, empty_at_end=draw(st.booleans()), all_used=known), ids


def expected(layout, row, front, tokens, empty):
    """Put a row together by hand."""
    padding = 0 if layout.offsets is None else int(layout.offsets[row])
    virtual = [value for value, used in zip(front, layout.used[row].tolist(), strict=True) if used]
    gaps = [empty] * (layout.slots - len(virtual))
    front, back = ([], gaps) if layout.empty_at_end else (gaps, [])
    return tokens[:padding] + front + virtual + tokens[padding:] + back


@given(layouts())
def test_rows_read_padding_virtual_tokens_tokens(case):
    layout, ids = case
    numbers = -torch.arange(1, layout.slots + 1).expand(len(ids), -1)
    joined = layout.insert(numbers.masked_fill(~layout.used, 0), ids)
    for row, own in enumerate(ids.tolist()):
        assert joined[row].tolist() == expected(layout, row, numbers[row].tolist(), own, 0)


@given(layouts())
def test_nothing_is_lost_and_what_was_put_in_is_told_apart(case):
    layout, ids = case
    widened = layout.fill(0, ids)
    assert widened[widened > 0].reshape(ids.shape).tolist() == ids.tolist()
    virtual, slot = layout.slot_of(ids.shape[1])
    assert virtual.sum(1).tolist() == layout.used.sum(1).tolist()
    assert not widened[virtual].any()
    numbers = torch.arange(layout.slots).expand(len(ids), -1)
    assert slot[virtual].tolist() == numbers[layout.used].tolist()
    columns = Columns(layout=layout)
    inserted = columns.inserted(widened.shape[1], len(ids), ids.device)
    assert widened[~inserted].reshape(ids.shape).tolist() == ids.tolist()


@given(layouts())
def test_values_of_any_shape_go_along(case):
    layout, ids = case
    values = torch.stack([ids, -ids], 2)
    widened = layout.insert(values.new_zeros(len(ids), layout.slots, 2), values)
    assert torch.equal(widened[..., 0], layout.fill(0, ids)) and torch.equal(widened[..., 1], -widened[..., 0])


@given(layouts())
def test_masks_show_virtual_tokens_and_what_they_showed(case):
    layout, ids = case
    mask = torch.ones_like(ids)
    if layout.offsets is not None:
        mask = (torch.arange(ids.shape[1]) >= layout.offsets[:, None]).long()
    widened = layout.widen_mask(mask)
    assert torch.equal(widened.sum(1), mask.sum(1) + layout.used.sum(1))
    assert widened.dtype == mask.dtype
    virtual, _ = layout.slot_of(ids.shape[1])
    assert widened[virtual].all()


@given(layouts())
def test_positions_count_virtual_tokens_as_the_mask_does(case):
    layout, ids = case
    mask = torch.ones_like(ids)
    if layout.offsets is not None:
        mask = (torch.arange(ids.shape[1]) >= layout.offsets[:, None].clamp(max=ids.shape[1] - 1)).long()
        layout = Layout(layout.used, padding_on_the_left(mask), layout.empty_at_end)
    widened, shown = layout.widen_positions(positions_of(mask)), layout.widen_mask(mask) == 1
    for row in range(len(ids)):
        assert widened[row][shown[row]].tolist() == list(range(int(shown[row].sum())))
        assert positions_of(layout.widen_mask(mask))[row][shown[row]].tolist() == list(range(int(shown[row].sum())))


@given(layouts())
def test_a_full_layout_has_all_slots_in_use(case):
    layout, ids = case
    assert layout.full().used.all() and layout.full().slots == layout.slots
    assert layout.full().fill(0, ids).shape == layout.fill(0, ids).shape


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_padding_on_the_left_ends_with_the_first_that_is_shown(rows):
    found = padding_on_the_left(torch.tensor(rows).long()).tolist()
    assert found == [row.index(True) if any(row) else 4 for row in rows]


@given(st.integers(0, 3), st.data())
def test_columns_are_the_cache_s_then_the_prefix_s_then_those_of_the_tokens(past, data):
    layout, ids = data.draw(layouts())
    slots = data.draw(st.integers(0, 3))
    number = torch.tensor(data.draw(st.lists(st.integers(0, slots), min_size=len(ids), max_size=len(ids))))
    prefix = torch.arange(slots) >= slots - number[:, None]
    columns = Columns(past, prefix, layout)
    before = torch.full((len(ids), past), 99)
    widened = columns.widen(torch.cat([before, ids], 1))
    assert torch.equal(widened[:, :past], before)
    assert torch.equal(widened[:, past : past + slots], prefix.long())
    assert torch.equal(widened[:, past + slots :], layout.widen_mask(ids))
    assert torch.equal(columns.used()[:, 0], prefix.sum(1) + layout.used.sum(1))
    assert columns.slots == slots + layout.slots
    inserted = columns.inserted(widened.shape[1], len(ids), ids.device)
    assert widened[~inserted].reshape(len(ids), -1).tolist() == torch.cat([before, ids], 1).tolist()
    assert columns.is_full() == bool(prefix.all() and layout.used.all())
    known = Columns(past, prefix, layout, all_used=columns.is_full())
    assert known.is_full() == columns.is_full()
    shifted = not prefix.all() or (not layout.empty_at_end and not layout.used.all())
    assert known.shifts_rows() == columns.shifts_rows() == shifted
