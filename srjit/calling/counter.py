"""Numbers the calls of a function that has a base key."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from srjit.calling.keys import Counted


class Counter:
    """Gives each call a key of its own: the base key, and the call's number.

    Attributes:
      base: the base key, or None.
      calls: how many calls have taken a number.
    """

    def __init__(self, base: Any) -> None:
        self.base, self.calls = base, 0
        self._counting = threading.Lock()

    def next(self) -> Counted:
        """Takes a number."""
        with self._counting:
            number = self.calls
            self.calls += 1
        return self.at(number)

    def at(self, number: int) -> Counted:
        """Returns the key of a call by its number, which is not taken."""
        # A jitted function takes a Python integer fastest; from 2**31 on it overflows there.
        return Counted(self.base, number if number < 2**31 else np.uint32(number))

    def give_back(self, key: Any) -> None:
        """Gives the number of a failed call to the next, unless one has a later number already."""
        if type(key) is Counted:
            with self._counting:
                self.calls -= self.calls == int(key.number) + 1
