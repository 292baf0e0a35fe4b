"""Values are what dataclasses with slots are, to their users, to `dataclasses` and to `copy`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import ClassVar, Generic, TypeVar

import pytest

from allocator.model.values import Value, declared_fields, field, replace

R = TypeVar("R")


class Point(Value, order=True):
    x: int
    y: int = 2
    tags: dict[str, int] = field(default_factory=dict, compare=False)
    secret: str = field(default="", repr=False)


class Base(Value, Generic[R], kw_only=True):
    script: ClassVar[str] = "none"
    pool: str
    namespace: str = "*"


class Child(Base["int"], kw_only=True):
    script: ClassVar[str] = "child"
    host: str


class Open(Value, frozen=False):
    count: int = 0


class Checked(Value):
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(self.number)


def test_it_is_made_of_arguments_by_position_and_by_name() -> None:
    assert (Point(1).x, Point(1).y, Point(1, y=5).y) == (1, 2, 5)
    assert Child(pool="p", host="h").namespace == "*"
    assert Child.script == "child"


def test_each_has_a_default_of_its_own() -> None:
    assert Point(1).tags == {}
    assert Point(1).tags is not Point(1).tags


@pytest.mark.parametrize("arguments", [{}, {"x": 1, "z": 1}])
def test_wrong_arguments_are_a_type_error_that_names_the_class(arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"Point\.__init__"):
        Point(**arguments)


def test_fields_by_name_only_are_not_taken_by_position() -> None:
    with pytest.raises(TypeError):
        Child("p", "h")  # type: ignore[misc]  # that is the test


def test_it_compares_by_kind_and_by_the_fields_that_count() -> None:
    assert Point(1, tags={"a": 1}) == Point(1)
    assert hash(Point(1, tags={"a": 1})) == hash(Point(1))
    assert Point(1) != Point(2)
    assert Checked(1) != Point(1)
    assert min(Point(2), Point(1)).x == 1  # type: ignore[type-var]  # ordered by the metaclass


def test_it_shows_its_fields_but_no_secret() -> None:
    assert repr(Point(1, secret="s")) == "Point(x=1, y=2, tags={})"


def test_it_is_frozen_and_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Point(1).x = 2  # type: ignore[misc]  # that is the test
    with pytest.raises(AttributeError):
        del Point(1).x
    with pytest.raises(AttributeError):
        Open().other = 1  # type: ignore[attr-defined]  # as above


def test_one_that_is_not_frozen_changes_and_has_no_hash() -> None:
    one = Open()
    one.count += 1  # type: ignore[misc]  # mypy takes the class for frozen
    assert one == Open(1)
    with pytest.raises(TypeError):
        hash(one)


def test_a_check_runs_for_each_also_for_a_changed_copy() -> None:
    with pytest.raises(ValueError, match="-1"):
        replace(Checked(1), number=-1)


def test_it_is_copied_and_pickled() -> None:
    one = Point(1, tags={"a": 1})
    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    assert replace(one, y=9) == dataclasses.replace(one, y=9) == Point(1, 9)


def test_dataclasses_take_it_for_one_of_theirs() -> None:
    assert dataclasses.is_dataclass(Point)
    assert [one.name for one in dataclasses.fields(Child)] == ["pool", "namespace", "host"]
    assert dataclasses.asdict(Open(3)) == {"count": 3}


def test_its_signature_is_that_of_its_fields() -> None:
    assert str(inspect.signature(Child)) == "(*, pool: 'str', namespace: 'str' = '*', host: 'str')"


def test_it_is_matched_by_position() -> None:
    match Point(1):
        case Point(x, 2):
            assert x == 1


def test_its_fields_are_listed_in_their_order() -> None:
    assert [one.name for one in declared_fields(Child)] == ["pool", "namespace", "host"]
