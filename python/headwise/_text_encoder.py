"""`TextEncoder`: the calls of sentence-transformers around the compiled model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headwise._encode import OUTPUT_VALUES, Call, run, stream, token_counts
from headwise._encode_info import EncodeInfo, warn_of_cut_texts
from headwise._precision import check_precision
from headwise._progress import progress
from headwise._similarity import similarity, similarity_pairwise
from headwise._text_inputs import logs_progress, resolve_prompt, texts_of
from headwise._text_model import TextModel, refuse, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import SupportsIndex

    from numpy.typing import ArrayLike, NDArray

    from headwise._text_inputs import Pair, Texts


class TextEncoder(TextModel):
    """A sentence encoder: texts to embeddings, hidden states and attention maps.

    Made by `TextEncoder.from_pretrained`. Its calls are those of sentence-transformers 6.2, positional ones
    too; results are NumPy arrays, and what cannot be done here is an error, never passed over.

    An embedding is a function of its text and the prompt before it: the batch, its order, its size and the
    number of threads change no bit of it.

    Attributes
    ----------
    prompts : dict of str to str
        Texts to put before queries, documents and so on, by name; "query" and "document" are always there.
    default_prompt_name : str or None
        The prompt of calls that name none.
    truncate_dim : int or None
        Columns of an embedding that are kept; all by default.

    Examples
    --------
    >>> import headwise as hw
    >>> encoder = hw.TextEncoder.from_pretrained("minilm")
    >>> encoder.encode("a dog ate the food").shape
    (384,)
    >>> encoder.encode(["a dog", "ate the food"]).shape
    (2, 384)
    """

    def encode(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        normalize_embeddings: bool = False,
        truncate_dim: SupportsIndex | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        sentences: Texts | None = None,
        ranges: ArrayLike | None = None,
        return_info: bool = False,
        task: str | None = None,
    ) -> Any:  # noqa: ANN401 - the form hangs on the arguments
        """Embed texts.

        Texts longer than `max_seq_length` tokens are cut, which a `TruncationWarning` counts.

        Parameters
        ----------
        inputs : str, or sequence or array of str or of pairs of str
            The texts. Two texts in a list or tuple are a pair, which the model reads as one text.
        prompt_name : str, optional
            The name of one of `prompts`, which is put before each text.
        prompt : str, optional
            A text to put before each text, whatever `prompts` says.
        batch_size : int
            At least 1, and otherwise without effect: texts are packed without padding into batches of a
            fixed number of tokens.
        show_progress_bar : bool, optional
            Count the texts on standard error, with tqdm where it is installed. By default this is done if
            the level of the logger "headwise" is INFO or DEBUG.
        output_value : {"sentence_embedding", "token_embeddings", None}
            What to give: embeddings, or the last hidden states of each text's tokens, or a dict of
            everything about each text.
        precision : {"float32", "int8", "uint8", "binary", "ubinary"}
            How embeddings are held. ``"float32"`` leaves them as they are; ``"binary"`` and ``"ubinary"``
            keep the signs, eight to a byte.
        convert_to_numpy : bool
            Always True.
        convert_to_tensor : bool
            Always False; ``torch.from_numpy`` makes a tensor.
        device : {None, "cpu"}
            Where to compute.
        normalize_embeddings : bool
            Bring each embedding to length 1, after `truncate_dim`. Some models, MiniLM for one, have
            embeddings of length 1 anyway.
        truncate_dim : int, optional
            Columns to keep, the first ones. The attribute of that name by default.
        pool : None
            There are no pools of processes: a call uses all threads.
        chunk_size : None
            Belongs to `pool`.
        sentences : str or sequence of str, optional
            Another name of `inputs`.
        ranges : array_like of shape (2, D), optional
            The least and the greatest value of each column, for ``"int8"`` and ``"uint8"``.
        return_info : bool
            Give ``(result, EncodeInfo)``, and no warning of texts that were cut.
        task : str, optional
            Taken and not used: no model here has parts for certain tasks.

        Returns
        -------
        ndarray of shape (B, D), or (D,) for one text
            The embeddings, in the dtype of the model or the one of `precision`. (B, ceil(D / 8)) for
            ``"binary"`` and ``"ubinary"``. For ``"token_embeddings"`` a list of arrays (L, D), for None a
            list of dicts of arrays; for one text, its item alone.

        Raises
        ------
        TypeError
            If `inputs` holds anything but texts.
        ValueError
            If an argument makes no sense or asks for what cannot be done here.
        TokenizerError
            If a text cannot be tokenized.
        """
        if sentences is not None:
            if inputs is not None:
                msg = "sentences: another name of inputs, got both"
                raise TypeError(msg)
            inputs = sentences
        whole("batch_size", batch_size)
        refuse(
            ("convert_to_numpy: results are NumPy arrays, expected True", not convert_to_numpy),
            (
                "convert_to_tensor: results are NumPy arrays; torch.from_numpy makes a tensor",
                convert_to_tensor,
            ),
            ("device: expected None or 'cpu'", device is not None and str(device) != "cpu"),
            ("pool: there are no pools; one call uses all threads", pool is not None),
            ("chunk_size: belongs to pool, and there are no pools", chunk_size is not None),
        )
        texts, one = texts_of(inputs)
        shown = logs_progress() if show_progress_bar is None else bool(show_progress_bar)
        call = self._call(
            prompt_name, prompt, output_value, precision, ranges, normalize_embeddings, truncate_dim, shown
        )
        found = run(call, texts)
        values = found.values[0] if one else found.values
        if return_info:
            return values, EncodeInfo(token_counts(call, texts, found), found.used)
        if found.cut.any():
            warn_of_cut_texts(int(found.cut.sum()), len(texts), call.core.max_length)
        return values

    def encode_query(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        normalize_embeddings: bool = False,
        truncate_dim: SupportsIndex | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        sentences: Texts | None = None,
        ranges: ArrayLike | None = None,
        return_info: bool = False,
        task: str | None = None,
    ) -> Any:  # noqa: ANN401 - as encode
        """Embed texts that ask: queries of a search.

        As `encode`, but where neither `prompt` nor `prompt_name` is given, the prompt is
        ``prompts["query"]``.

        Parameters
        ----------
        inputs : str, or sequence or array of str or of pairs of str
            As for `encode`.
        prompt_name : str, optional
            As for `encode`.
        prompt : str, optional
            As for `encode`.
        batch_size : int
            As for `encode`.
        show_progress_bar : bool, optional
            As for `encode`.
        output_value : {"sentence_embedding", "token_embeddings", None}
            As for `encode`.
        precision : {"float32", "int8", "uint8", "binary", "ubinary"}
            As for `encode`.
        convert_to_numpy : bool
            As for `encode`.
        convert_to_tensor : bool
            As for `encode`.
        device : {None, "cpu"}
            As for `encode`.
        normalize_embeddings : bool
            As for `encode`.
        truncate_dim : int, optional
            As for `encode`.
        pool : None
            As for `encode`.
        chunk_size : None
            As for `encode`.
        sentences : str or sequence of str, optional
            As for `encode`.
        ranges : array_like of shape (2, D), optional
            As for `encode`.
        return_info : bool
            As for `encode`.
        task : str, optional
            As for `encode`.

        Returns
        -------
        ndarray of shape (B, D), or (D,) for one text
            As `encode` gives.
        """
        if prompt_name is None and prompt is None and "query" in self.prompts:
            prompt_name = "query"
        return self.encode(
            inputs,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            convert_to_numpy,
            convert_to_tensor,
            device,
            normalize_embeddings,
            truncate_dim,
            pool,
            chunk_size,
            sentences=sentences,
            ranges=ranges,
            return_info=return_info,
            task=task,
        )

    def encode_document(
        self,
        inputs: Texts | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = "sentence_embedding",
        precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: object = None,
        normalize_embeddings: bool = False,
        truncate_dim: SupportsIndex | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        sentences: Texts | None = None,
        ranges: ArrayLike | None = None,
        return_info: bool = False,
        task: str | None = None,
    ) -> Any:  # noqa: ANN401 - as encode
        """Embed texts that answer: documents of a search.

        As `encode`, but where neither `prompt` nor `prompt_name` is given, the prompt is the first of
        "document", "passage" and "corpus" that `prompts` has.

        Parameters
        ----------
        inputs : str, or sequence or array of str or of pairs of str
            As for `encode`.
        prompt_name : str, optional
            As for `encode`.
        prompt : str, optional
            As for `encode`.
        batch_size : int
            As for `encode`.
        show_progress_bar : bool, optional
            As for `encode`.
        output_value : {"sentence_embedding", "token_embeddings", None}
            As for `encode`.
        precision : {"float32", "int8", "uint8", "binary", "ubinary"}
            As for `encode`.
        convert_to_numpy : bool
            As for `encode`.
        convert_to_tensor : bool
            As for `encode`.
        device : {None, "cpu"}
            As for `encode`.
        normalize_embeddings : bool
            As for `encode`.
        truncate_dim : int, optional
            As for `encode`.
        pool : None
            As for `encode`.
        chunk_size : None
            As for `encode`.
        sentences : str or sequence of str, optional
            As for `encode`.
        ranges : array_like of shape (2, D), optional
            As for `encode`.
        return_info : bool
            As for `encode`.
        task : str, optional
            As for `encode`.

        Returns
        -------
        ndarray of shape (B, D), or (D,) for one text
            As `encode` gives.
        """
        if prompt_name is None and prompt is None:
            names = ("document", "passage", "corpus")
            prompt_name = next((name for name in names if name in self.prompts), None)
        return self.encode(
            inputs,
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            output_value,
            precision,
            convert_to_numpy,
            convert_to_tensor,
            device,
            normalize_embeddings,
            truncate_dim,
            pool,
            chunk_size,
            sentences=sentences,
            ranges=ranges,
            return_info=return_info,
            task=task,
        )

    def encode_stream(
        self,
        inputs: Iterable[str | Pair],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] = "float32",
        normalize_embeddings: bool = False,
        truncate_dim: SupportsIndex | None = None,
        ranges: ArrayLike | None = None,
        show_progress_bar: bool = False,
        ahead: int = 256,
    ) -> Iterator[NDArray[Any]]:
        """Embed texts one after the other as they come, in bounded memory.

        Embeddings come one by one rather than in chunks, in the order of the texts: writing them to a file
        or beside their texts then needs no bookkeeping. Texts are taken from `inputs`, at most `ahead` of
        them, only when all embeddings so far have been taken from here. The bits are those of `encode`.

        Parameters
        ----------
        inputs : iterable of str or of pairs of str
            The texts: a generator, a file's lines, a list.
        prompt_name : str, optional
            As for `encode`.
        prompt : str, optional
            As for `encode`.
        precision : {"float32", "int8", "uint8", "binary", "ubinary"}
            As for `encode`.
        normalize_embeddings : bool
            As for `encode`.
        truncate_dim : int, optional
            As for `encode`.
        ranges : array_like of shape (2, D), optional
            As for `encode`.
        show_progress_bar : bool
            Count the texts on standard error.
        ahead : int
            Texts that are taken and computed at once. Fewer come sooner; more are faster, up to some
            hundreds.

        Returns
        -------
        iterator of ndarray of shape (D,)
            The embedding of each text. Where texts were cut, a `TruncationWarning` at the end counts them.

        Raises
        ------
        TypeError
            If `inputs` is one text, or holds anything but texts.
        ValueError
            If an argument makes no sense.
        TokenizerError
            If a text cannot be tokenized.

        Examples
        --------
        >>> import headwise as hw
        >>> encoder = hw.TextEncoder.from_pretrained("minilm")
        >>> lines = (f"line {n}" for n in range(1000))
        >>> next(encoder.encode_stream(lines)).shape
        (384,)
        """
        # Arguments are checked by the call, not by the first `next`.
        if isinstance(inputs, (str, bytes)):
            came = type(inputs).__name__
            msg = f"inputs: expected an iterable of texts, got one {came}; encode takes one text"
            raise TypeError(msg)
        ahead = whole("ahead", ahead)
        call = self._call(
            prompt_name, prompt, "sentence_embedding", precision, ranges, normalize_embeddings, truncate_dim
        )
        return _rows(call, iter(inputs), ahead, show_progress_bar)

    # ---- Similarity ------------------------------------------------------------------------------------

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[Any]:
        """Compare each embedding with each other one, by `similarity_fn_name`.

        Parameters
        ----------
        embeddings1 : array_like of shape (B1, D) or (D,)
            Embeddings.
        embeddings2 : array_like of shape (B2, D) or (D,)
            Embeddings.

        Returns
        -------
        ndarray of shape (B1, B2)
            Greater is more alike; distances have a minus.

        Examples
        --------
        >>> import headwise as hw
        >>> encoder = hw.TextEncoder.from_pretrained("minilm")
        >>> cat, kitten = encoder.encode(["The cat sleeps.", "A kitten naps."])
        >>> encoder.similarity(cat, kitten).shape
        (1, 1)
        >>> bool(encoder.similarity(cat, kitten) > 0.5)
        True
        """
        return similarity(self._similarity, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[Any]:
        """Compare each embedding with the one in the same place, by `similarity_fn_name`.

        Parameters
        ----------
        embeddings1 : array_like of shape (B, D) or (D,)
            Embeddings.
        embeddings2 : array_like of shape (B, D) or (D,)
            Embeddings, as many.

        Returns
        -------
        ndarray of shape (B,), or a number for (D,)
            Greater is more alike; distances have a minus.
        """
        return similarity_pairwise(self._similarity, embeddings1, embeddings2)

    def _call(
        self,
        prompt_name: str | None,
        prompt: str | None,
        output_value: str | None,
        precision: str | None,
        ranges: ArrayLike | None,
        normalize_embeddings: bool,
        truncate_dim: SupportsIndex | None,
        show_progress: bool = False,
    ) -> Call:
        """Check what `encode` and `encode_stream` are asked for."""
        if output_value not in OUTPUT_VALUES:
            msg = f"output_value: expected one of {OUTPUT_VALUES}, got {output_value!r}"
            raise ValueError(msg)
        precision = check_precision(precision, ranges)
        refuse(
            (
                "precision: output_value=None gives float32 only",
                output_value is None and precision != "float32",
            ),
        )
        if truncate_dim is None:
            truncate_dim = self.truncate_dim
        if truncate_dim is not None:
            truncate_dim = whole("truncate_dim", truncate_dim)
        text = resolve_prompt(prompt, prompt_name, self.prompts, self.default_prompt_name)
        core = self._core
        skip = core.prompt_length(text) if text and not self._include_prompt else 0
        return Call(
            core,
            text,
            skip,
            output_value,
            precision,
            ranges,
            bool(normalize_embeddings),
            truncate_dim,
            show_progress,
        )


def _rows(call: Call, texts: Iterator[object], ahead: int, shown: bool) -> Iterator[NDArray[Any]]:
    """Give the embeddings of a stream one by one."""
    done = cut = 0
    bar = progress(shown, None)
    try:
        for found in stream(call, texts, ahead):
            done += len(found.used)
            cut += int(found.cut.sum())
            bar.update(len(found.used))
            # Copies: a row that is kept should not keep its neighbours alive.
            yield from map(np.copy, found.values)
    finally:
        bar.close()
    if cut:
        warn_of_cut_texts(cut, done, call.core.max_length)
