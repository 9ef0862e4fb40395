"""``export``: a streaming torch model -> one self-describing ``.onnx`` file.

The file is written in a folder of its own beside its place, opened by the runtime, compared with the
torch model in float64 (whole, in random splits, in single steps), and only then put in place. Weights
are read one at a time, for the file and again for the comparison, and never all in memory twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from streamssm.export import graph
from streamssm.export.alphabet import Tokenizer, attach_tokenizer, read_alphabet
from streamssm.export.certify import Golden, Reference, certify
from streamssm.export.describe import OutputSpec, check_model, describe, item_dtype
from streamssm.export.golden import Rounding, golden_of, original_of, sample_of
from streamssm.export.layers.base import StreamingLayer
from streamssm.export.memory import give_back
from streamssm.export.parameters import Parameter, parameters_of, reference
from streamssm.export.writing import MAX_BYTES, Draft, require_writable
from streamssm.manifest import Alphabet, EventRule, Input, InputKind, Manifest


def export(
    model: StreamingLayer,
    path: str | os.PathLike[str],
    *,
    kind: InputKind = "features",
    rate: float | None = None,
    vocabulary: int | None = None,
    outputs: Sequence[OutputSpec] | None = None,
    name: str | None = None,
    block: int | None = None,
    events: EventRule | None = None,
    description: str = "",
    license: str = "",  # noqa: A002  the manifest's word
    front_end: str = "",
    example: np.ndarray | None = None,
    provenance: dict[str, Any] | None = None,
    weights: Mapping[str, Callable[[], Tensor]] | None = None,
    window_imposed: int | None = None,
    verify: bool = True,
    alphabet: Alphabet | None = None,
    tokenizer: Tokenizer = None,
    end: Sequence[int] = (),
    one_file: int = MAX_BYTES,
) -> Manifest:
    """Export ``model`` to ``path`` and return the manifest that the file carries.

    Args:
        model: any streaming layer; copied to the CPU and to evaluation mode. If it has an attribute
            ``reference``, a function from x [1, T, *item_shape] to what the module that it was made
            from makes of it, the file is compared with that too.
        kind: what one input item is; ``tokens`` needs ``vocabulary``.
        rate: input items per second; None for inputs without a clock.
        outputs: names and meanings, in order; a model that returns a dictionary has one for
            each of its keys. By default those of ``model.output_names``, or one named "output".
        block: default input items per backend call, a multiple of the model's hop.
        example: input items [T, *item_shape] for the golden vectors; random by default.
        provenance: anything JSON can hold about where the weights come from.
        weights: functions that read the parameters by name, in float32, for a model on the meta
            device; of a shared parameter any name will do. By default the model's own.
        window_imposed: the window to which attention was narrowed, if it is not the model's own.
        verify: compare the file with the model, and keep the errors and golden vectors in it.
        alphabet: what tokens stand for, ``bytes`` or ``nucleotides``.
        tokenizer: or the path or the content of the tokenizer.json that says it; it goes into the file.
        end: the tokens that end a text.
        one_file: weights of more bytes than this lie in ``PATH.data`` beside the file.

    Raises:
        ExportError: an argument does not fit the model, the model cannot be traced, or the file
            differs from it by more than the tolerance table allows. Nothing is written then.
        OutputError: ``path`` cannot be written.
    """
    path = Path(path)
    require_writable(path)
    if outputs is None:
        outputs = tuple(OutputSpec(output) for output in getattr(model, "output_names", ("output",)))
    check_model(model, kind, vocabulary, outputs, block, rate)
    alphabet, said = read_alphabet(alphabet, tokenizer, end, vocabulary)
    parameters = parameters_of(model, weights)
    names = tuple(output.name for output in outputs)
    traced = graph.traced(model, parameters, kind, names, vocabulary)
    manifest = describe(
        model,
        parameters,
        Input(
            *(kind, kind, item_dtype(model), tuple(model.item_shape), rate, model.hop, vocabulary, front_end),
            *(alphabet, tuple(end)),
        ),
        outputs,
        traced.outputs,
        block=block,
        name=name or path.stem,
        description=description,
        license=license,
        events=events,
        provenance=(provenance or {}) | _said_by(model),
        window_imposed=window_imposed or getattr(model, "window_imposed", None),
    )
    x = sample_of(manifest, example)
    attach_tokenizer(traced.proto, said)
    with Draft(path, one_file) as draft:
        draft.write(traced.proto, traced.tensors)
        give_back()
        if verify:
            _verify(draft, model, parameters, manifest, x)
        else:
            draft.describe(manifest, None)
        return draft.place()


def _verify(
    draft: Draft, model: StreamingLayer, parameters: Sequence[Parameter], manifest: Manifest, x: np.ndarray
) -> None:
    """Compare the draft with the model, one after the other in memory, and write the result into it."""
    golden = golden_of(reference(model, parameters), manifest, x)
    rounding = Rounding(lambda: reference(model, parameters, torch.float32), manifest, golden)
    references = _references(model, manifest, golden, rounding)
    draft.describe(manifest, golden)
    give_back()
    errors = certify(draft.path, x, references)
    errors += () if rounding.error is None else (rounding.error,)
    draft.describe(msgspec.structs.replace(manifest, errors=errors), golden)


def _said_by(model: StreamingLayer) -> dict[str, Any]:
    """What a converted model says of itself: parts that could not be compared with their own code."""
    note = getattr(model, "note", ())
    return {"converted": list(note)} if note else {}


def _references(
    model: StreamingLayer, manifest: Manifest, golden: Golden, rounding: Rounding
) -> list[Reference]:
    """The model in float64; and the module that it was converted from, as it is."""
    found = [Reference("float64", "the torch model", golden.outputs, rounding)]
    original = getattr(model, "reference", None)
    if original is not None:
        outputs = original_of(original, manifest, golden.x)
        found.append(Reference("the original", "the original torch module", outputs, rounding))
    return found
