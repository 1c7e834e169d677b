"""A sentence encoder as it was loaded: its settings, tokens, hidden states, and the way back to a folder."""

from __future__ import annotations

import operator
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from headwise._core import TextEncoder as CoreEncoder
from headwise._similarity import SIMILARITIES
from headwise._text_inputs import resolve_prompt, texts_of, with_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import SupportsIndex

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from headwise._attention_maps import AttentionMaps
    from headwise._core import Pullback
    from headwise._text_inputs import Texts


class TextModel:
    """What `TextEncoder` is before it embeds: users meet this class under that name only."""

    prompts: dict[str, str]
    default_prompt_name: str | None
    truncate_dim: int | None
    _core: CoreEncoder
    _include_prompt: bool
    _similarity: str

    def __init__(self) -> None:
        msg = "TextEncoder: made by TextEncoder.from_pretrained(folder_or_name)"
        raise TypeError(msg)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | os.PathLike[str],
        *,
        dtype: Literal["float32", "float64"] = "float32",
        max_length: int | None = None,
        pooling: str | None = None,
        mmap: bool = False,
    ) -> Self:
        """Load a model from a folder.

        Nothing is fetched: ``headwise fetch minilm`` does that.

        Parameters
        ----------
        folder_or_name : str or path
            A folder with config.json, model.safetensors and tokenizer.json, or the name of a model that has
            been fetched, such as ``"minilm"``.
        dtype : {"float32", "float64"}
            What is computed in.
        max_length : int, optional
            Tokens that a text may have, special ones included; longer texts are cut. The model's own number
            by default.
        pooling : {"mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"}, optional
            How the rows of a text's tokens become one. The model's own way by default.
        mmap : bool
            Map the files of weights instead of reading them: tables in the model's dtype then share the
            memory of other processes. Only for files that nobody changes: if one is cut while it is mapped,
            the process dies.

        Returns
        -------
        TextEncoder
            The model.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ModelFormatError
            If a file is damaged or does not fit the others.
        TokenizerError
            If tokenizer.json is damaged.
        UnsupportedModelError
            If the model is of a kind that headwise does not run.
        """
        folder = os.fspath(folder_or_name)
        if not os.path.isdir(folder):
            from headwise._fetch import find

            folder = os.fspath(find(folder))
        self = cls.__new__(cls)
        self._core = CoreEncoder.from_pretrained(
            folder, dtype=dtype, max_length=max_length, pooling=pooling, mmap=mmap
        )
        settings = self._core.settings
        self.prompts = settings["prompts"]
        self.default_prompt_name = settings["default_prompt_name"]
        self.truncate_dim = settings["truncate_dim"]
        self._include_prompt = settings["include_prompt"]
        self._similarity = settings["similarity_fn_name"] or "cosine"
        return self

    # ---- Tokens and hidden states ----------------------------------------------------------------------

    def preprocess(
        self, inputs: Texts, prompt: str | None = None, **kwargs: object
    ) -> dict[str, NDArray[np.int64]]:
        """Turn texts into token ids.

        Parameters
        ----------
        inputs : str, or sequence or array of str or of pairs of str
            The texts; each is cut where it is longer than `max_seq_length`.
        prompt : str, optional
            A text to put before each text.
        **kwargs : object
            Further options of sentence-transformers: refused by name.

        Returns
        -------
        dict of str to ndarray of int64, shape (B, L)
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, padded on the right to the longest text:
            the arguments of `forward`.
        """
        if kwargs:
            msg = f"preprocess() got an unexpected keyword argument {next(iter(kwargs))!r}"
            raise TypeError(msg)
        texts, _ = texts_of(inputs)
        return self._core.features(with_prompt(prompt or "", texts))

    def tokenize(self, texts: Texts, **kwargs: object) -> dict[str, NDArray[np.int64]]:
        """Turn texts into token ids: the older name of `preprocess`.

        Parameters
        ----------
        texts : str, or sequence or array of str or of pairs of str
            The texts.
        **kwargs : object
            As for `preprocess`.

        Returns
        -------
        dict of str to ndarray of int64, shape (B, L)
            As `preprocess` gives.
        """
        return self.preprocess(texts, **kwargs)  # type: ignore[arg-type]

    def forward(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
    ) -> NDArray[Any]:
        """Compute the last hidden state of rows of token ids.

        Positions are counted along a row, padding included, as in ``transformers``. Padding is not computed.

        Parameters
        ----------
        input_ids : array_like of int, shape (B, L)
            Token ids.
        attention_mask : array_like of bool or 0/1, shape (B, L), optional
            True for tokens, False for padding. All are tokens by default.
        token_type_ids : array_like of int, shape (B, L), optional
            0 for the first text of a pair, 1 for the second. All 0 by default.

        Returns
        -------
        ndarray of shape (B, L, D)
            A row for each token; 0 for padding.

        Raises
        ------
        ValueError
            If shapes do not fit or a number is outside its table.
        TypeError
            If an array does not hold whole numbers.
        """
        return self._core.forward(input_ids, attention_mask, token_type_ids)

    def attentions(self, text: str, text_pair: str | None = None) -> AttentionMaps:
        """Compute the attention weights of every layer and head for a text.

        Parameters
        ----------
        text : str
            The text; cut where it is longer than `max_seq_length`.
        text_pair : str, optional
            A second text, put behind the first as the model was trained with pairs.

        Returns
        -------
        AttentionMaps
            Weights, tokens and words; ``maps[layer, head]`` is an (L, L) array.
        """
        return self._core.attentions(text, text_pair)

    # ---- Training --------------------------------------------------------------------------------------

    def vjp(
        self,
        inputs: Texts,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *,
        first_layer: SupportsIndex = 0,
    ) -> tuple[NDArray[Any], Pullback]:
        """Embed texts in one batch, and return what turns gradients of the embeddings into all others.

        Parameters
        ----------
        inputs : str, or sequence or array of str or of pairs of str
            The texts: one batch, computed without padding and kept for the pullback as a whole.
        prompt_name, prompt : str, optional
            What is put before each text, as for `encode`.
        first_layer : int, default 0
            The first layer to train. Those below it run as in inference and get no gradients, nor do the
            tables of the embeddings then. The number of layers trains only what follows them.

        Returns
        -------
        embeddings : ndarray of shape (B, D)
            As `encode` gives them, the same bits; (1, D) for one text.
        pullback : Pullback
            ``pullback(d_embeddings)`` gives ``(d_inputs, grads)``: a list of (L, D) arrays, the gradients of
            each text's input embeddings (of the states that `first_layer` began with, if that is not 0), and
            a dict of the gradients of the parameters, named as in `state_dict`.

        Raises
        ------
        ValueError
            If there is no such layer or no such prompt.

        See Also
        --------
        load_state_dict : Give the model other parameters, as an optimiser of `headwise.optim` does.
        """
        texts, _ = texts_of(inputs)
        text = resolve_prompt(prompt, prompt_name, self.prompts, self.default_prompt_name)
        skip = self._core.prompt_length(text) if text and not self._include_prompt else 0
        first = whole("first_layer", first_layer, least=0)
        return self._core.vjp(with_prompt(text, texts), skip, first)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, by the names that BERT's checkpoints give them.

        Returns
        -------
        dict of str to ndarray
            In the model's dtype. Dense modules behind the pooling are ``dense.0.linear.weight`` and so on.
        """
        return self._core.state_dict()

    def load_state_dict(self, state: Mapping[str, ArrayLike], strict: bool = True) -> None:
        """Give the model other parameters; calls that are under way keep those that they began with.

        Parameters
        ----------
        state : mapping of str to array_like
            Parameters by name, with or without wrappers' prefixes.
        strict : bool, default True
            Whether a missing or an unexpected name is an error.

        Raises
        ------
        ValueError
            If a parameter has another shape, or names do not fit; then nothing changes.
        """
        self._core = self._core.with_state(state, strict)

    # ---- Settings --------------------------------------------------------------------------------------

    @property
    def max_seq_length(self) -> int:
        """Tokens that a text may have, special ones included; longer texts are cut."""
        return self._core.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: SupportsIndex) -> None:
        length = whole("max_seq_length", value)
        # The compiled model never changes: calls that are under way keep the one that they began with.
        try:
            self._core = self._core.with_max_length(length)
        except ValueError as error:
            raise ValueError(str(error).replace("max_length", "max_seq_length", 1)) from None

    @property
    def similarity_fn_name(self) -> str:
        """How `similarity` compares: "cosine", "dot", "euclidean" or "manhattan"."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: str | None) -> None:
        name = getattr(value, "value", value) or "cosine"  # sentence-transformers has an enum of them
        if name not in SIMILARITIES:
            msg = f"similarity_fn_name: expected one of {', '.join(SIMILARITIES)}, got {value!r}"
            raise ValueError(msg)
        self._similarity = name

    @property
    def dtype(self) -> str:
        """What is computed in: "float32" or "float64"."""
        return self._core.dtype

    def get_embedding_dimension(self) -> int:
        """Give the width of the embeddings.

        Returns
        -------
        int
            D, or `truncate_dim` where that is less.
        """
        width = self._core.width
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """Give the width of the embeddings: the older name of `get_embedding_dimension`.

        Returns
        -------
        int
            As `get_embedding_dimension` gives.
        """
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Set the attribute `truncate_dim` within a ``with`` block.

        Parameters
        ----------
        truncate_dim : int or None
            Columns of an embedding to keep; None for all.

        Yields
        ------
        None
            Nothing; the former number comes back at the end of the block.
        """
        before = self.truncate_dim
        try:
            self.truncate_dim = truncate_dim
            yield
        finally:
            self.truncate_dim = before

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Choose whether the tokens of a prompt are pooled.

        Parameters
        ----------
        include_prompt : bool
            False leaves them out, as INSTRUCTOR models want it.
        """
        self._include_prompt = bool(include_prompt)

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Save the model to a folder that headwise and sentence-transformers both load.

        The weights and the tokenizer are copied from the folder that the model was loaded from;
        `max_seq_length`, the prompts, `similarity_fn_name`, `truncate_dim` and the pooling are written as
        they are now.

        Parameters
        ----------
        path : str or path
            The folder; made where it does not exist.
        model_name : None
            Belongs to a model card that is written; here it is copied.
        create_model_card : bool
            Copy README.md too, where the model has one.
        train_datasets : None
            As `model_name`.
        safe_serialization : bool
            Always True: weights are saved as safetensors.

        Raises
        ------
        FileNotFoundError
            If the folder that the model was loaded from is gone.
        ValueError
            If an argument asks for what cannot be done here.
        """
        # Here, because these would cost every import of headwise milliseconds.
        from pathlib import Path

        from headwise._save import Settings, save

        refuse(
            ("model_name: model cards are copied, not written", model_name is not None),
            ("train_datasets: model cards are copied, not written", train_datasets is not None),
            ("safe_serialization: weights are saved as safetensors, expected True", not safe_serialization),
        )
        core = self._core
        model = {
            "prompts": self.prompts,
            "default_prompt_name": self.default_prompt_name,
            "similarity_fn_name": self._similarity,
            "truncate_dim": self.truncate_dim,
        }
        settings = Settings(core.max_length, core.pooling, self._include_prompt, core.width, model)
        weights = core.state_dict() if core.trained else None
        save(core.folder, Path(path), settings, weights, model_card=create_model_card)

    def __repr__(self) -> str:
        return repr(self._core)


def whole(name: str, value: SupportsIndex, least: int = 1) -> int:
    """Give a whole number of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        msg = f"{name}: expected a whole number, got {type(value).__name__}"
        raise TypeError(msg) from None
    refuse((f"{name}: expected at least {least}, got {number}", number < least))
    return number


def refuse(*refusals: tuple[str, bool]) -> None:
    """Raise the first refusal that holds."""
    for message, holds in refusals:
        if holds:
            raise ValueError(message)


def reopened(open_folder: Callable[[str], CoreEncoder], folder: str, state: dict[str, Any]) -> CoreEncoder:
    """Make a model again that had other parameters than its folder: what a pickle names."""
    return open_folder(folder).with_state(state)
