"""docs/reducers.md lists every reducer as it is."""

from operators import registry
from operators.reducers.base import Reducer
from tests.reducer_table import PAGE, methods, page


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "write its tables anew: python -m tests.reducer_table"


def test_every_method_is_listed_with_what_was_checked() -> None:
    lines = {line.split("`")[1]: line for line in methods().splitlines()[2:]}
    names = {name for name, cls in registry.all_classes().items() if issubclass(cls, Reducer)}
    assert set(lines) == names
    assert "features alone | copies | fixed" in lines["divprune"]
    assert "`keys` | averages | fixed | `metric` (keys, features)" in lines["tome"]
    assert "`cls_attention` | copies | fixed" in lines["topk"]
