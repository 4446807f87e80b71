"""AdapterStore: what calls need is in the model, what was needed least recently leaves, and nothing else changes."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peftcore import AdapterStore, PeftModel, adapter_source, get_peft_model, inject_adapter_in_model
from peftcore.exceptions import AdapterNameError, AdapterStoreError, CheckpointError, ConfigError, PeftCoreError

from .methods import BankedConfig, PlainConfig, ScaledConfig, TurnedConfig
from .models import Net, anatomy, assert_as_before, differs, same, stir

X = torch.linspace(-1, 1, 20).reshape(4, 5)
NAMES = list("abcdef")

CONFIGS = {
    "a": PlainConfig(target_modules=["one", "two"]),
    "b": TurnedConfig(target_modules=["one"]),
    "c": BankedConfig(target_modules=["one", "two"]),
    "d": PlainConfig(target_modules=["two"], modules_to_save=["head"]),
    "e": PlainConfig(target_modules=["two"], bias="all"),
    "f": ScaledConfig(target_modules=["one"]),
}


@pytest.fixture(scope="module")
def folder(tiny_methods, tmp_path_factory):
    """Six adapters of different methods, each in a directory of its name."""
    path = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        stir(get_peft_model(net(), config, adapter_name=name)).save_pretrained(path)
    return path


def net():
    with torch.random.fork_rng(()):
        torch.manual_seed(7)
        return Net()


def empty():
    return PeftModel(net(), None).eval()


@pytest.fixture
def model():
    return empty()


def expected(folder, *names):
    """What rows with these adapters give, each loaded by hand."""
    by_hand = empty()
    for name in set(names) - {"__base__"}:
        by_hand.load_adapter(folder / name, name)
    return by_hand(X[: len(names)], adapter_names=list(names))


# ------------------------------------------------------------------------------------------------------- calls


def test_a_call_has_the_adapters_that_it_needs(folder, model):
    store = AdapterStore(model, folder, capacity=4)
    for names in (["a", "b", "__base__", "a"], ["c", "d", "e", "f"], ["b", "a", "f", "c"]):
        with store.pinned(names):
            same(model(X, adapter_names=names), expected(folder, *names))
    assert set(store.loaded()) == set(model.peft_config) == {"a", "b", "c", "f"}
    assert (store.counts.loads, store.counts.hits, store.counts.evictions) == (8, 2, 4)


def test_a_model_that_was_adapted_in_place(folder):
    model = net().eval()
    inject_adapter_in_model(CONFIGS["a"], model, "own")
    store = AdapterStore(model, folder, capacity=1)
    for name in "bc":
        store.ensure(name)
    assert set(store.host.tuners) == {"own", "c"}


def test_plain_calls_do_not_depend_on_what_is_loaded(folder, model):
    frozen = model(X)
    store = AdapterStore(model, folder, capacity=2)
    for name in NAMES:
        store.ensure(name)
        assert model.active_adapters == []
        assert torch.equal(model(X), frozen)


def test_what_is_active_stays_active_and_trainable(folder):
    model = get_peft_model(net(), CONFIGS["a"], adapter_name="mine")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    store = AdapterStore(model, folder, capacity=1)
    for name in NAMES:
        store.ensure(name)
    assert model.active_adapters == ["mine"]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_random_numbers_go_on_as_if_nothing_was_loaded(folder, model):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    AdapterStore(model, folder, capacity=6).ensure(NAMES)
    assert torch.equal(torch.rand(4), wanted)


def test_loading_in_inference_mode(folder, model):
    store = AdapterStore(model, folder, capacity=1)
    with torch.inference_mode():
        for name in NAMES:
            with store.pinned(name):
                same(model(X, adapter_names=[name] * 4), expected(folder, *[name] * 4))
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_all_that_leaves_is_freed_and_the_model_is_as_it_was(folder):
    plain = net().eval()
    before = anatomy(plain)
    store = AdapterStore(PeftModel(plain, None).eval(), folder, capacity=6, host_bytes=1)
    store.ensure(NAMES)
    gc.collect()
    modules = [weakref.ref(module) for tuner in store.host.tuners.values() for module in tuner.modules()]
    assert len(modules) > len(NAMES)
    gc.disable()
    try:
        for name in NAMES:
            store.drop(name)
        assert [ref() for ref in modules] == [None] * len(modules)
    finally:
        gc.enable()
    assert store.nbytes == store.source.nbytes == 0
    assert store.host.layers() == ()
    assert_as_before(plain, before)


# --------------------------------------------------------------------------------------------- what does not leave


@pytest.mark.parametrize("kept", ["pinned", "active", "merged", "changed", "about to be trained"])
def test_what_is_in_use_stays(folder, model, kept):
    store = AdapterStore(model, folder, capacity=2)
    store.ensure(["a", "b"])
    with ExitStack() as stack:
        if kept == "pinned":
            stack.enter_context(store.pinned("a"))
        elif kept == "active":
            model.set_adapter("a")
        elif kept == "merged":
            model.merge_adapter(["a"])
            stack.callback(model.unmerge_adapter)
        elif kept == "changed":
            stir(model, "a")
        else:
            model.base_model.tuner("a").requires_grad_(True)
        state = {key: value.clone() for key, value in model.state_dict().items() if ".a." in key}
        store.ensure("c")
        store.ensure("d")
        assert store.loaded() == ("a", "d")
        assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
        with pytest.raises(AdapterStoreError, match=r"'a' is (pinned|active|merged|changed since)"):
            store.ensure(["e", "f"])
        with pytest.raises(AdapterStoreError, match="can't be dropped"):
            store.drop("a")
        assert store.loaded() == ("a", "d")
        assert "a " in str(store.view())


def test_changes_are_discarded_only_when_told_to(folder, model):
    store = AdapterStore(model, folder, capacity=1)
    store.ensure("a")
    stir(model, "a")
    store.drop("a", discard_changes=True)
    with store.pinned("a"):
        same(model(X, adapter_names=["a"] * 4), expected(folder, *"aaaa"))


def test_what_is_handed_over_is_the_user_s(folder, model):
    store = AdapterStore(model, folder, capacity=1)
    store.ensure("a")
    store.hand_over("a")
    store.ensure("b")
    assert store.loaded() == ("b",) and set(model.peft_config) == {"a", "b"}
    with pytest.raises(AdapterNameError):
        store.hand_over("a")


def test_an_exception_in_the_call_unpins(folder, model):
    store = AdapterStore(model, folder, capacity=1)
    with pytest.raises(ZeroDivisionError), store.pinned("a"), store.pinned("a"):
        raise ZeroDivisionError
    store.ensure("b")
    assert store.loaded() == ("b",)


def test_bytes_are_bounded_too(folder, model):
    store = AdapterStore(model, folder, capacity=6)
    store.ensure(NAMES)
    sizes = {name: sum(p.nbytes for p in model.base_model.tuner(name).parameters()) for name in NAMES}
    assert store.nbytes >= sum(sizes.values())
    bound = sizes["a"] + sizes["d"]
    store = AdapterStore(empty(), folder, capacity=6, capacity_bytes=bound)
    store.ensure(["a", "d"])
    store.ensure("b")
    assert store.nbytes <= bound and "b" in store.loaded() and "a" not in store.loaded()
    before = store.loaded()
    with pytest.raises(AdapterStoreError, match="bytes would have to be"):
        store.ensure(["a", "d", "c"])
    assert store.loaded() == before and set(store.host.tuners) == set(before)


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["a", "nobody"], AdapterNameError),
        (["a", "../a"], AdapterNameError),
        (["a", ""], AdapterNameError),
        (["a", "broken"], CheckpointError),
        (["a", "foreign"], CheckpointError),
        (["a", "c", "d"], AdapterStoreError),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_loaded_changes_nothing(folder, tmp_path, names, error):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    wide = Net()
    wide.one = torch.nn.Linear(5, 6)
    wide.two = torch.nn.Linear(6, 9)
    wide.head = torch.nn.Linear(9, 3)
    get_peft_model(wide, CONFIGS["a"], adapter_name="foreign").save_pretrained(tmp_path)
    plain = net().eval()
    paths = {**{name: folder / name for name in NAMES}, **{name: tmp_path / name for name in ("broken", "foreign")}}
    store = AdapterStore(PeftModel(plain, None), paths, capacity=2)
    store.ensure(["b", "f"])
    before, loaded = anatomy(plain), store.loaded()
    with pytest.raises(error):
        store.ensure(names)
    assert_as_before(plain, before)
    assert store.loaded() == loaded == tuple(store.host.tuners)
    assert store.counts.loads == 2


def test_a_near_name_is_suggested(folder):
    paths = {"customer-one": folder / "a"}
    with pytest.raises(AdapterNameError, match="'customer-one'"):
        AdapterStore(empty(), paths, capacity=1).ensure("customer-on")


def test_a_folder_knows_what_is_not_in_it(folder):
    with pytest.raises(AdapterNameError, match="'nobody'"):
        AdapterStore(empty(), folder, capacity=1).ensure("nobody")


def test_a_function_finds_directories(folder, model):
    def find(name):
        if name == "none":
            return None
        return {"one": folder / "a"}[name]

    store = AdapterStore(model, find, capacity=2)
    store.ensure("one")
    assert store.loaded() == ("one",)
    for name in ("none", "other"):
        with pytest.raises(AdapterNameError, match=name):
            store.ensure(name)


@pytest.mark.parametrize(
    "room", [{"capacity": 0}, {"capacity": 1, "capacity_bytes": 0}, {"capacity": 1, "host_bytes": -1}]
)
def test_a_store_without_room_is_refused(folder, model, room):
    with pytest.raises(ConfigError, match="needs room"):
        AdapterStore(model, folder, **room)


# ---------------------------------------------------------------------------------------------------- host memory


def moved(folder, tmp_path):
    """A copy of adapter "a" that can be taken away."""
    get_peft_model(net(), CONFIGS["a"], adapter_name="a").save_pretrained(tmp_path)
    return tmp_path


def test_a_second_load_does_not_touch_the_disk(folder, model, tmp_path):
    moved(folder, tmp_path)
    store = AdapterStore(model, {"a": tmp_path / "a", "b": folder / "b"}, capacity=1, host_bytes=10**6)
    with store.pinned("a"):
        first = model(X, adapter_names=["a"] * 4)
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(b"")
    store.ensure("b")
    with store.pinned("a"):
        assert torch.equal(model(X, adapter_names=["a"] * 4), first)
    assert store.source.reads == 2
    store.drop("a")
    with pytest.raises(PeftCoreError):
        store.ensure("a")


def test_changes_in_the_model_do_not_reach_what_host_memory_holds(folder, model):
    store = AdapterStore(model, folder, capacity=1, host_bytes=10**6)
    with store.pinned("a"):
        first = model(X, adapter_names=["a"] * 4)
        stir(model, "a")
        differs(model(X, adapter_names=["a"] * 4), first)
    model.delete_adapter("a")
    with store.pinned("a"):
        assert torch.equal(model(X, adapter_names=["a"] * 4), first)


def test_host_memory_keeps_what_was_read_last(folder, model):
    store = AdapterStore(model, folder, capacity=6)
    store.ensure(NAMES)
    assert store.source.kept() == ()
    sizes = {name: AdapterStore(model, folder, capacity=1).source.get(name).nbytes for name in NAMES}
    store = AdapterStore(empty(), folder, capacity=1, host_bytes=sum(sizes[name] for name in "abd"))
    for name in "abd":
        store.prefetch(name)
    assert store.source.kept() == ("a", "b", "d") and store.loaded() == ()
    store.ensure("a")
    store.prefetch("a")
    store.prefetch("f")
    assert store.source.kept() == ("d", "a", "f")
    assert store.source.nbytes == sum(sizes[name] for name in "daf")
    assert store.source.reads == 4


@pytest.mark.parametrize("name", ["../adapters/a", "..", "a/../a", ""])
def test_nothing_is_read_from_outside_the_folder(folder, model, name):
    store = AdapterStore(model, folder / "a" / "..", capacity=1, host_bytes=10**6)
    with pytest.raises(AdapterNameError):
        store.prefetch(name)


def test_reading_ahead_needs_host_memory(folder, model):
    with pytest.raises(AdapterStoreError, match="host_bytes"):
        AdapterStore(model, folder, capacity=1).prefetch("a")


def test_threads_that_want_one_adapter_read_it_once(folder, model, monkeypatch):
    together = threading.Barrier(4)
    read = adapter_source.read_tensors

    def slowly(directory):
        together.wait(10)
        return read(directory)

    monkeypatch.setattr(adapter_source, "read_tensors", slowly)
    store = AdapterStore(model, folder, capacity=4, host_bytes=10**6)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.prefetch, "abcd" * 2))
    assert store.source.reads == 4
    store.ensure(list("abcd"))
    assert store.source.reads == 4


def test_threads_read_ahead_while_the_model_works(folder, model):
    store = AdapterStore(model, folder, capacity=2, host_bytes=2000)
    wanted = {name: expected(folder, *[name] * 4) for name in NAMES}
    rounds = [name for _ in range(10) for name in NAMES]
    with ThreadPoolExecutor(4) as pool:
        ahead = [pool.submit(store.prefetch, name) for name in rounds]
        for name in rounds:
            with store.pinned(name):
                same(model(X, adapter_names=[name] * 4), wanted[name])
        for future in ahead:
            future.result()
    assert store.source.nbytes <= 2000


def test_what_is_forgotten_while_it_is_read_is_not_kept(folder, model, monkeypatch):
    read = adapter_source.read_tensors

    def forgotten(directory):
        store.source.forget("a")
        return read(directory)

    monkeypatch.setattr(adapter_source, "read_tensors", forgotten)
    store = AdapterStore(model, folder, capacity=1, host_bytes=10**6)
    store.ensure("a")
    assert store.loaded() == ("a",) and store.source.kept() == ()


# ------------------------------------------------------------------------------------- against a model of the store


class Requests(RuleBasedStateMachine):
    """The store beside what it should be: a list of names, the least recently needed first."""

    capacity = 3
    names = st.sampled_from(NAMES)
    folder = None

    @initialize()
    def start(self):
        self.model = empty()
        self.store = AdapterStore(self.model, self.folder, capacity=self.capacity)
        self.order, self.theirs, self.changed, self.pins, self.active = [], set(), set(), [], None

    def stays(self, name):
        return name in self.changed or name == self.active or any(name in names for names, _ in self.pins)

    def expect(self, wanted):
        """The list as it should be when names are needed; None if there is no room."""
        missing = [name for name in wanted if name not in self.order and name not in self.theirs]
        over = len(self.order) + len(missing) - self.capacity
        free = [name for name in self.order if name not in wanted and not self.stays(name)]
        if missing and over > len(free):
            return None
        leaving = free[: max(over, 0)] if missing else []
        wanted = [name for name in wanted if name not in self.theirs]
        return [name for name in self.order if name not in wanted and name not in leaving] + wanted

    @rule(names=st.lists(names, min_size=1, max_size=4, unique=True), pin=st.booleans())
    def need(self, names, pin):
        order = self.expect(names)
        if order is None:
            with pytest.raises(AdapterStoreError):
                self.store.ensure(names)
            return
        if pin:
            block = self.store.pinned(names)
            block.__enter__()
            self.pins.append((names, block))
        else:
            self.store.ensure(names)
        self.order = order

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        _, block = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        block.__exit__(None, None, None)

    @rule(name=names)
    def change(self, name):
        if name in self.order:
            stir(self.model, name)
            self.changed.add(name)

    @rule(name=names)
    def activate(self, name):
        there = name in self.model.peft_config
        self.model.set_adapter(name if there else [])
        self.active = name if there else None

    @rule(name=names)
    def hand_over(self, name):
        if name in self.order:
            self.store.hand_over(name)
            self.order.remove(name)
            self.changed.discard(name)
            self.theirs.add(name)

    @rule(name=names)
    def delete_by_hand(self, name):
        if name in self.model.peft_config and name != self.active and not self.stays(name):
            self.model.delete_adapter(name)
            self.order = [other for other in self.order if other != name]
            self.theirs.discard(name)

    @rule(name=names)
    def load_by_hand(self, name):
        if name not in self.model.peft_config:
            self.model.load_adapter(self.folder / name, name)
            self.theirs.add(name)
            if self.active is None:
                self.active = name

    @rule(name=names)
    def drop(self, name):
        if name in self.order and self.stays(name):
            with pytest.raises(AdapterStoreError):
                self.store.drop(name)
            return
        self.store.drop(name)
        if name in self.order:
            self.order.remove(name)

    @invariant()
    def is_what_it_should_be(self):
        if not hasattr(self, "store"):
            return
        assert list(self.store.loaded()) == self.order
        assert set(self.model.peft_config) == {*self.order, *self.theirs}
        assert self.model.active_adapters == ([] if self.active is None else [self.active])
        assert len(self.order) <= self.capacity


def test_the_store_is_a_list_that_forgets_its_first(folder):
    Requests.folder = folder
    case = Requests.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
    case("runTest").runTest()
