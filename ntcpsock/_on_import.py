"""Do something to a module when the program imports it, without importing it before the program does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

# No base classes: importing importlib.abc would cost every patched program 25 ms.


class OnImport:
    """In `sys.meta_path`: calls `action` with the module `name` after it was loaded."""

    def __init__(self, name: str, action: Callable[[ModuleType], object]) -> None:
        self._name = name
        self._action = action

    def install(self) -> None:
        """Act now where the module is there already; else when it comes."""
        module = sys.modules.get(self._name)
        if module is not None:
            self._action(module)
        else:
            sys.meta_path.insert(0, self)

    def uninstall(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, with `action` behind its loading."""
        if fullname != self._name:
            return None
        from importlib.util import find_spec

        self.uninstall()
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._action)  # type: ignore[assignment]  # as above, for Loader
        return spec


class _Loader:
    def __init__(self, loader: Any, action: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Load it, then act. Programs find the loader that was there."""
        self._loader.exec_module(module)
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._action(module)
