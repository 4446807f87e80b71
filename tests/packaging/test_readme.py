"""The Python blocks of the READMEs run as they stand, and a page's links lead somewhere."""

import re
from pathlib import Path

import pytest

import peftcore

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *ROOT.glob("plugins/*/README.md")]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)
    if "CirculantAdapter" in names:
        use_of_the_example_method(names)


def use_of_the_example_method(names: dict[str, object]) -> None:
    """What the README calls a whole method is one: it registers, trains and merges."""
    import torch
    from torch import nn

    method = names["register_peft_method"]()  # type: ignore[operator]
    peftcore.register_peft_method(method)
    try:
        model = peftcore.get_peft_model(nn.Sequential(nn.Linear(8, 12)), method.config_cls(target_modules=["0"]))
        x = torch.randn(3, 8)
        nn.init.normal_(next(p for p in model.parameters() if p.requires_grad))
        adapted = model(x)
        torch.testing.assert_close(model.merge_and_unload()(x), adapted)
    finally:
        peftcore.unregister_peft_method(method.name)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_page_for_contributors_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 100
