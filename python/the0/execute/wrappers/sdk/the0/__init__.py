"""`the0` as a bot imports it where nothing else provides it: the runtime's own, and nothing that is installed beside it."""

import importlib.util
import os
import sys

_folder = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4))
_spec = importlib.util.spec_from_file_location(
    "the0", os.path.join(_folder, "__init__.py"), submodule_search_locations=[_folder]
)
_module = importlib.util.module_from_spec(_spec)
sys.modules["the0"] = _module
_spec.loader.exec_module(_module)
