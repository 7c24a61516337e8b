"""Makes a network's files in one format, and compares them with PyTorch through the format's own runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwnas.errors import HwnasError, InputError, UnavailableError, VerificationError
from hwnas.export.bisect import first_departure, sample_layers
from hwnas.export.formats import MODEL_FILE, WEIGHTS_FILE, Format, FormatOptions
from hwnas.export.manifest import Preprocessing
from hwnas.export.onnx_file import INLINE_LIMIT, fix_batch, model_files
from hwnas.export.parity import Parity, check_accuracy, check_parity, coarsest_rounding, run_model, run_program
from hwnas.export.preprocessing import normalise, prepend_preprocessing
from hwnas.ir.network import Network
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import Weights
from hwnas.runtimes import RUNTIMES, Program, RuntimeConfig, load_runtime
from hwnas.runtimes.base import one_line
from hwnas.runtimes.onnx_model import ONNX_FILE

OPEN_BATCHES = (1, 3)  # what a model of open batch size is tried with

Labels = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Maker:
    """One format of one network.

    Attributes:
        network: The network.
        weights: Its arrays.
        options: What is asked for.
        chosen: The format, as `options.check()` gives it.
        batch_size: Images in a batch.
        preprocessing: What images must go through; None where that is unknown.
    """

    network: Network
    weights: Weights
    options: FormatOptions
    chosen: Format
    batch_size: int
    preprocessing: Preprocessing | None

    @property
    def rounding(self) -> str:
        """What the tolerance depends on."""
        return coarsest_rounding(self.network, self.options.precision)

    def require_what_it_needs(self) -> str:
        """PyTorch's version.

        Raises:
            UnavailableError: It, or what makes or runs the format, is not here.
        """
        if not self.chosen.built_elsewhere:
            load_runtime(self.chosen.runtime)
        try:
            import torch
        except ModuleNotFoundError:
            raise UnavailableError("An export is compared with PyTorch, which is not installed; run: pip install "
                                   "'hwnas[train]'.") from None
        return torch.__version__

    def runtime_version(self) -> dict[str, str]:
        """The runtime's name and version, or that of its package."""
        runtime = RUNTIMES[self.chosen.runtime]
        version = runtime.availability().version or _package_version(runtime.name)
        return {} if version is None else {runtime.name: version}

    def run_torch(self, network: Network, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs of a network, for images as the model takes them."""
        import torch

        from hwnas.lower.torch import to_torch

        if self.options.include_preprocessing and self.preprocessing is not None:
            images = normalise(images, self.preprocessing)
        with torch.inference_mode():
            return to_torch(network, self.weights).eval()(torch.tensor(images)).numpy()

    def onnx_model(self, network: Network, properties: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """What the format is, or is made from."""
        model = to_onnx(network, self.weights, batch_size=self.batch_size, opset=self.chosen.opset,
                        dynamic_batch=self.options.dynamic_batch, metadata=properties)
        if self.options.include_preprocessing and self.preprocessing is not None:
            prepend_preprocessing(model, self.preprocessing)
        return model

    def make(self, images: NDArray[np.float32], logits: NDArray[np.float32], properties: Mapping[str, str]
             ) -> tuple[dict[str, bytes], dict[str, NDArray[Any]]]:
        """The format's files, and what is kept of the model's layers."""
        model = self.onnx_model(self.network, properties)
        if self.options.format == "onnx":
            files = model_files(model)
            if WEIGHTS_FILE in files:  # as large as these are, ONNX's own check takes them only from files
                return files, {}
            onnx.checker.check_model(files[MODEL_FILE], full_check=True)
            return files, sample_layers(model, images[:1]).to_arrays()
        files = model_files(model)
        if WEIGHTS_FILE in files:
            raise InputError(f"Converters take models of up to {INLINE_LIMIT:,} bytes of weights, but this one has more: export "
                             f"it as onnx instead of {self.options.format}.")
        if self._why_not_run() is not None:
            self._check_source(files[MODEL_FILE], images, logits)
        return self.chosen.shipped(self.chosen.build(files[MODEL_FILE], self.options)), {}

    def compare(self, contents: Mapping[str, bytes], images: NDArray[np.float32], logits: NDArray[np.float32],
                tested: tuple[NDArray[np.float32], Labels] | None) -> dict[str, Any]:
        """The manifest's fields on how the files' numbers compare with PyTorch's.

        Raises:
            VerificationError: They differ.
        """
        reason = self._why_not_run()
        if reason is not None:
            if self.chosen.inspect is not None:
                self.chosen.inspect(self._program(contents, self.batch_size))
            return {"parity": f"not run: {reason}", "parity_max_abs": None, "parity_tolerance": None,
                    "parity_top1_agreement": None, "parity_accuracy_difference": None}
        what = f"{self.options.format} in {self.chosen.runtime} and PyTorch"
        batches = OPEN_BATCHES if self.options.dynamic_batch else (self.batch_size,)
        results = [self._run(contents, images, batch) for batch in batches]
        try:
            found = [check_parity(logits, result, what, self.rounding) for result in results]
        except VerificationError as error:
            raise VerificationError(f"{str(error).rstrip('.')}{self._where(images)}.") from None
        worst = max(found, key=lambda parity: parity.max_abs)
        difference = None
        if tested is not None:
            difference = check_accuracy(self.run_torch(self.network, tested[0]), self._run(contents, tested[0], batches[0]),
                                        np.asarray(tested[1]), what)
        return {"parity": "agrees", "parity_max_abs": worst.max_abs, "parity_tolerance": worst.tolerance,
                "parity_top1_agreement": min(parity.top1_agreement for parity in found),
                "parity_accuracy_difference": difference}

    def _run(self, contents: Mapping[str, bytes], images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
        try:
            return run_program(RUNTIMES[self.chosen.runtime], RuntimeConfig(precision=self.options.precision),
                               self._program(contents, batch), images)
        except HwnasError:
            raise
        except Exception as error:  # runtimes raise what they like, often only when the model runs
            raise VerificationError(f"The {self.options.format} files must run in {self.chosen.runtime} on {batch} images at a "
                                    f"time, but do not ({one_line(error)}): choose another format.") from None

    def _program(self, contents: Mapping[str, bytes], batch: int) -> Program:
        return self.chosen.program(contents, (batch, *self.network.input_shape), self.network.output_shape.channels)

    def _why_not_run(self) -> str | None:
        """Why what was built cannot run on this machine; None if it can."""
        return RUNTIMES[self.chosen.runtime].availability().reason if self.chosen.built_elsewhere else None

    def _check_source(self, model: bytes, images: NDArray[np.float32], logits: NDArray[np.float32]) -> Parity:
        """Compares the model that an engine is built from, in its precision, where the engine cannot run."""
        config = RuntimeConfig(precision=self.options.precision)
        source = RUNTIMES[self.chosen.runtime].prepare(model, config).files[ONNX_FILE]
        return check_parity(logits, run_model(source, images), f"The model for {self.options.format} in ONNX Runtime and PyTorch",
                            self.rounding)

    def _where(self, images: NDArray[np.float32]) -> str:
        """Names the first layer that departs, where the format's converter takes parts of the network."""
        runtime, config = RUNTIMES[self.chosen.runtime], RuntimeConfig(precision=self.options.precision)
        few = np.concatenate([images[:1]] * (1 if self.options.dynamic_batch else self.batch_size))

        def departs(part: Network) -> bool:
            expected = self.run_torch(part, few)
            model = self.onnx_model(part)
            if self.options.dynamic_batch:
                model = fix_batch(model, 1)
            program = self.chosen.build(model.SerializeToString(), self.options)
            try:
                check_parity(expected, run_program(runtime, config, program, few), "", self.rounding)
            except VerificationError:
                return True
            return False

        try:
            return f"; the first layer that departs is {first_departure(self.network, departs)!r}"
        except Exception:  # a part of a network may be what a converter has never seen; the difference is told in any case
            return ""


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
