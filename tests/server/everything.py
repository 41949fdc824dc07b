"""Imports what `paligemma serve` imports by the time it is ready, so that its copies need not."""

# ruff: noqa: F401

import pydantic.v1
import torch.fx.experimental.symbolic_shapes

import paligemma.cli.serve
import paligemma.server.app
import paligemma.server.process
import tests.server.faults
import tests.server.server_process
