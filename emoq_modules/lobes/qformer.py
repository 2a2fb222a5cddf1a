"""The EmoQ-Former: learnable queries that fuse the text with the audio.

A BERT, in the paper RoBERTa, whose input is the learnable queries followed by
the text. Both attend to each other (Eqs. 1 and 2 of the paper); in every second
layer the queries also attend to the audio frames (Eq. 3). What they hold in the
end is pooled by attention and scaled to unit length: the embedding e'_q.

::

            e'_q (B, d_h)
                  ^
           pooling, L2 norm
                  ^
     +------------|------------------------------------+
     |     feed-forward             feed-forward       |
     |            ^                      ^             |
     |     cross-attention <--+          |             |  Eq. 3; in every
     |            ^           |          |             |  second layer
     |     +------+-----------|----------+-------+     |
     |     |     self-attention of [Q ; T]       |     |  Eqs. 1 and 2
     |     +------+-----------|----------+-------+     |
     +------------|-----------|----------|-------------+  x depth
                  ^           ^          ^
               queries    projection   embeddings
           Q (B, N_q, d_h)    ^        T (B, L, d_h)
                              |          ^
                   norm, mix      |
                              ^          |
                frames (B, T, audio_dim)|  tokens (B, L)

Source: Y. Yang and M.-W. Mak, https://arxiv.org/abs/2509.15775, Sec. 2.1; after
BLIP-2, https://arxiv.org/abs/2301.12597.
"""

import math
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from emoq_modules.lobes.frame_norm import FrameNorm
from emoq_modules.lobes.pooling import AttentivePooling, length_mask
from emoq_modules.lobes.text_encoder import (
    TextEmbeddings,
    bert_names,
    load_text_encoder,
)


class EmoQFormer(nn.Module):
    """Fuses audio frames and text into one embedding of unit length.

    The layer is BLIP-2's, on any BERT. The mask of Eq. 3 is additive: a product
    inside the softmax would leave weight on the padding. Weights that no
    checkpoint gives keep the size of what passes through them, at any width.

    Arguments
    ---------
    source : str | Path | dict | transformers.PretrainedConfig
        A BERT, RoBERTa, XLM-R, CamemBERT or MiniLM: its name on the Hugging
        Face hub or a local folder, whose weights are loaded; or a configuration
        (its values in a dict, RoBERTa's without ``model_type``), which gives
        random weights.
    audio_dim : int
        Size of an audio frame, of one layer of the audio encoder.
    num_queries : int
        Number of learnable queries. With 0 the module is the text encoder
        itself, of which only ``encode`` is of use.
    cross_attention_every : int
        The queries attend to the audio in layers 0, n, 2n, ...; with 0 never.
    pooling_heads : int
        Heads of the attentive pooling over the queries.
    dropout : float | None
        Dropout of hidden states and attention, in place of the text encoder's.
    revision : str | None
        Branch, tag or commit on the hub.
    frame_norm : bool
        Whether frames pass a ``FrameNorm`` before the projection. Where weights
        are loaded that were trained without one, it is taken out.
    audio_layers : int
        Layers that a frame holds, side by side: ``FrameNorm`` mixes them.
    all_queries : bool
        Whether ``forward`` gives the queries after e'_q, each of unit norm too.

    Raises
    ------
    BackboneError
        If the source is neither a folder, nor cached, nor reachable, or its
        weights are not those of its configuration.
    ValueError
        If the source is no BERT, or several layers have no ``frame_norm``.

    Example
    -------
    >>> tiny = {"hidden_size": 16, "num_attention_heads": 2}
    >>> fusion = EmoQFormer(tiny, audio_dim=8, num_queries=4, pooling_heads=2)
    >>> audio, tokens = torch.rand(2, 20, 8), torch.randint(2, 50, (2, 6))
    >>> lens = torch.tensor([1.0, 0.5])
    >>> fusion(audio, lens, tokens, lens).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        source,
        audio_dim,
        num_queries=32,
        cross_attention_every=2,
        pooling_heads=8,
        dropout=None,
        revision=None,
        frame_norm=True,
        audio_layers=1,
        all_queries=False,
    ):
        super().__init__()
        if audio_layers > 1 and not frame_norm:
            raise ValueError(
                f"Frames of {audio_layers} layers are mixed after each is "
                "normalized: set frame_norm to True, or take one layer."
            )
        config, pretrained = load_text_encoder(source, revision)
        if dropout is not None:
            config.hidden_dropout_prob = dropout
            config.attention_probs_dropout_prob = dropout
        self.config, self.all_queries = config, all_queries
        self.output_dim = dim = config.hidden_size
        self.text_embeddings = TextEmbeddings(config)
        # The queries carry no position: their order means nothing.
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        self.query_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        listens = num_queries > 0 and cross_attention_every > 0
        self.frame_norm = None
        if listens and frame_norm:
            self.frame_norm = FrameNorm(audio_dim, audio_layers)
        self.audio_projection = nn.Linear(audio_dim, dim) if listens else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            _FusionLayer(
                config,
                queries=num_queries > 0,
                audio=listens and index % cross_attention_every == 0,
                # After the last layer nobody looks at the text.
                text=num_queries == 0 or index < depth - 1,
            )
            for index in range(depth)
        )
        self.pooling = AttentivePooling(dim, pooling_heads)
        self._initialize(pretrained)

    def forward(self, audio, audio_lens, tokens, token_lens):
        """Computes the embedding e'_q of each utterance.

        Arguments
        ---------
        audio : torch.Tensor
            Frames of any encoder, ``(B, T, audio_layers * audio_dim)``.
        audio_lens : torch.Tensor
            Relative lengths of the audio, ``(B,)``; 0 where it is not heard.
        tokens : torch.Tensor
            Token ids of the transcript, ``(B, L)``; a ``ValueError`` if they
            are more than the text encoder has positions.
        token_lens : torch.Tensor
            Relative lengths of the transcript, ``(B,)``; 0 where there is none.

        Returns
        -------
        torch.Tensor | tuple
            Embeddings, ``(B, d_h)``, each of unit L2 norm; with ``all_queries``
            ``(B, 1 + N_q, d_h)``, and their relative lengths, ``(B,)``.
        """
        queries, _ = self.encode(audio, audio_lens, tokens, token_lens)
        everything = queries.new_ones(len(queries))
        pooled = self.pooling(queries, everything)
        if not self.all_queries:
            return F.normalize(pooled, dim=-1)
        several = torch.cat([pooled[:, None], queries], dim=1)
        return F.normalize(several, dim=-1), everything

    def encode(self, audio, audio_lens, tokens, token_lens):
        """Computes the hidden states that ``forward`` pools.

        Arguments
        ---------
        audio : torch.Tensor
            As ``forward`` takes it, ``(B, T, audio_layers * audio_dim)``.
        audio_lens : torch.Tensor
            Likewise, ``(B,)``.
        tokens : torch.Tensor
            Likewise, ``(B, L)``.
        token_lens : torch.Tensor
            Likewise, ``(B,)``.

        Returns
        -------
        queries : torch.Tensor
            The queries' hidden states, ``(B, N_q, d_h)``.
        text : torch.Tensor
            Those of the transcript, ``(B, L, d_h)``: after the last layer's
            self-attention, and with no queries after its feed-forward too.
        """
        batch, num_queries = len(tokens), len(self.queries)
        text_mask = length_mask(tokens, token_lens)
        query_mask = text_mask.new_ones(batch, num_queries)
        # (B, N_q + L): every position sees the queries and real tokens
        self_mask = torch.cat([query_mask, text_mask], dim=1)
        audio_mask = length_mask(audio, audio_lens)

        queries = self.query_norm(self.queries).expand(batch, -1, -1)
        queries = self.dropout(queries)  # (B, N_q, d_h)
        text = self.text_embeddings(tokens, text_mask)  # (B, L, d_h)
        frames = None
        if self.audio_projection is not None:
            # Padding would be most of the work: recordings differ in length.
            places = audio_mask.flatten().nonzero().squeeze(1)  # (M,)
            inside = audio.flatten(0, 1).index_select(0, places)
            if self.frame_norm is not None:
                inside = self.frame_norm(inside)
            frames = self.audio_projection(inside), places  # (M, d_h)
        heard = audio_mask.any(dim=1, keepdim=True)
        audio_mask |= ~heard  # a softmax over nothing is not a number
        for layer in self.layers:
            queries, text = layer(
                queries, text, self_mask, frames, audio_mask, heard
            )
        return queries, text

    @contextmanager
    def record_attention(self):
        """Records, within a ``with`` block, which frames the queries attend to.

        The embeddings are what they are without. Meanwhile the weights are
        computed beside the fused attention, which does not give them away,
        before dropout and without a gradient.

        Yields
        ------
        list of torch.Tensor
            Weights ``(B, heads, N_q, T)`` of each layer with cross-attention,
            in every call: 0 on padding, and 1 in sum over the frames; a
            ``ValueError`` if there is no such layer.

        Example
        -------
        >>> tiny = {"hidden_size": 16, "num_attention_heads": 2}
        >>> fusion = EmoQFormer(tiny, 8, num_queries=4, pooling_heads=2)
        >>> one, tokens = torch.ones(1), torch.tensor([[5, 7]])
        >>> with fusion.record_attention() as weights:
        ...     embeddings = fusion(torch.rand(1, 20, 8), one, tokens, one)
        >>> torch.stack(weights).shape  # (layers, B, heads, N_q, T)
        torch.Size([6, 1, 2, 4, 20])
        """
        listening = [
            module
            for module in self.modules()
            if isinstance(module, _CrossAttention)
        ]
        if not listening:
            raise ValueError(
                "No layer of this EmoQ-Former attends to the audio: give "
                "num_queries and cross_attention_every values above 0."
            )
        recorded = []

        def record(module, inputs, output):
            recorded.append(module.weights(*inputs))

        with ExitStack() as hooks:
            for attention in listening:
                hooks.enter_context(attention.register_forward_hook(record))
            yield recorded

    def _initialize(self, pretrained):
        deviation = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # What goes in with a deviation of 1 comes out with one of 1.
                scale = 1 / math.sqrt(module.in_features)
                nn.init.normal_(module.weight, std=scale)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        # Their norm follows. As small as this, they move at small rates too.
        nn.init.normal_(self.queries, std=deviation)
        if pretrained is not None:
            parameters = dict(self.named_parameters())
            with torch.no_grad():
                for name, origin in bert_names(parameters).items():
                    parameters[name].copy_(pretrained[origin])


class _FusionLayer(nn.Module):
    """A BERT's layer with ways for those of the queries, audio and text."""

    def __init__(self, config, queries, audio, text):
        super().__init__()
        self.self_attention = _Attention(config)
        self.cross_attention = _CrossAttention(config) if audio else None
        self.query_output = _FeedForward(config) if queries else nn.Identity()
        self.text_output = _FeedForward(config) if text else nn.Identity()

    def forward(self, queries, text, self_mask, frames, audio_mask, heard):
        """Maps queries and text, ``(B, N, d_h)``, to the next layer's.

        Queries of audio that is not heard, ``(B, 1)``, pass by it.
        """
        num_queries = queries.shape[1]
        joint = torch.cat([queries, text], dim=1)  # (B, N_q + L, d_h), Eq. 1
        joint = self.self_attention(joint, joint, self_mask)  # Eq. 2
        queries, text = joint[:, :num_queries], joint[:, num_queries:]
        if self.cross_attention is not None:
            listened = self.cross_attention(queries, frames, audio_mask)
            queries = torch.where(heard[..., None], listened, queries)  # Eq. 3
        return self.query_output(queries), self.text_output(text)


class _Attention(nn.Module):
    """Attention with its residual connection and norm, as in BERT."""

    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, memory, mask):
        """Adds to ``(B, N, d_h)`` what it finds in ``(B, M, d_h)``."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self._read(self.key, memory, mask)),
            self._split(self._read(self.value, memory, mask)),
            attn_mask=mask[:, None, None],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        attended = self.output(attended.transpose(1, 2).flatten(2))
        return self.norm(x + self.dropout(attended))

    @torch.no_grad()
    def weights(self, x, memory, mask):
        """Weights with which ``forward`` attends, ``(B, heads, N, M)``."""
        query = self._split(self.query(x))
        key = self._split(self._read(self.key, memory, mask))
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None], -math.inf)
        return scores.softmax(dim=-1)

    def _read(self, layer, memory, mask):
        """Keys or values of a memory, ``(B, M, d_h)``."""
        return layer(memory)

    def _split(self, states):
        """Gives each head its features, ``(B, heads, N, d_h / heads)``."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _CrossAttention(_Attention):
    """Attention to frames ``(M, d_h)``, and their places in the flat mask."""

    def _read(self, layer, memory, mask):
        frames, places = memory
        read = layer(frames)
        padded = read.new_zeros(mask.numel(), read.shape[1])
        return padded.index_copy(0, places, read).unflatten(0, mask.shape)


class _FeedForward(nn.Module):
    """Feed-forward with its residual connection and norm, as in BERT."""

    def __init__(self, config):
        super().__init__()
        dim, inner_dim = config.hidden_size, config.intermediate_size
        self.intermediate = nn.Linear(dim, inner_dim)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(inner_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x):
        """Maps each position of ``(B, N, d_h)`` by itself."""
        inner = self.activation(self.intermediate(x))
        return self.norm(x + self.dropout(self.output(inner)))
