"""Refuses to build a wheel; everything else stands in pyproject.toml."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class NoWheel(bdist_wheel):
    """A wheel would lack the configs, and put folders called modules and scripts beside everybody else's."""

    def run(self) -> None:
        """Stop; an editable install (pip install -e) uses other methods of this command, and goes on."""
        raise SystemExit(
            "leeml is not built as a wheel: it is used from its folder, which holds configs/; clone it and run "
            "pip install -e ."
        )


setup(cmdclass={"bdist_wheel": NoWheel})
