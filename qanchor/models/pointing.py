"""`PointingReader`: the question attends to the user's own tokens.

Which tokens matter follows from the similarity of question and token, so it generalizes to texts
that were not in training. How their numbers (how much, how recent) count is shared by all concepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qanchor.models.aliases import Aliases
from qanchor.models.associations import AssociationInput, association_features, score_associations
from qanchor.models.text_encoder import text_vectors, wording_vectors
from qanchor.models.user_tokens import (
    LEVEL_NUMBERS,
    N_LEVEL_NUMBERS,
    N_TOKEN_NUMBERS,
    TOKEN_NUMBERS,
    UserTokens,
    token_columns,
)
from qanchor.models.words import (
    BUYING,
    PLACE,
    content_words,
    plain_words,
    spelling_vectors,
)
from qanchor.useru.concepts import MEASURES, behavior_queries
from qanchor.useru.topics import names_one
from qanchor.utils.device import single_thread
from qanchor.utils.text import plural

HEADS = 6
KEY_DIM = 48
GENERAL_DIM = 16  # what the question asks apart from its topic: how often, how much, how soon
HIDDEN_DIM = 160
STATE_DIM = 64
TOLD_DIM = 1 + STATE_DIM
TEXT_DIM = 31  # embedding dimensions for the texts that the question points at
PROFILE_DIM = 32  # embedding dimensions for the user's overall activity, whatever is asked
# mean length of the profile: small compared with the parts that depend on the question
PROFILE_SCALE = 0.3
EMBEDDING_DIM = 1 + TEXT_DIM + PROFILE_DIM + STATE_DIM
SCORE_SCALE = 0.5  # weight of the score in an embedding; its text and state parts have length 1
FIT_SCALES = (12.0, 8.0, 6.0, 4.0, 4.0, 4.0)  # initial weight of the word fit in each head
SHUT = -5.0  # initial bias of the sigmoid heads: only clear matches are summed
SUMMED = token_columns(
    "count", "count in the last horizon", "count in the last quarter of a horizon", "amount"
)
ASSOCIATED = token_columns("count", "count in the last horizon", "amount")
# numbers of the meant tokens whose maximum (of the share: whose sum) the prior reads
MEANT = token_columns(
    "days since the last",
    "days since the first",
    "largest amount",
    "share of all that the user did",
)
COUNT = TOKEN_NUMBERS.index("count")
TENURE = LEVEL_NUMBERS.index("days since the first")
DAYS = LEVEL_NUMBERS.index("days")
# user-level numbers that do not grow with the length of the history, and all percentiles
PRIOR_LEVELS = [
    LEVEL_NUMBERS.index(name)
    for name in (
        "days since the last",
        "days in the last horizon",
        "days in the last quarter of a horizon",
        "mean amount",
    )
]
PRIOR_LEVELS += range(len(LEVEL_NUMBERS), N_LEVEL_NUMBERS)
PRIOR_KINDS = ("event", "any event", "number")  # what is measured
N_PRIOR_NUMBERS = len(SUMMED) + 7 + len(PRIOR_LEVELS)
RELATIVE_FIT = 0.85  # things match if their fit is at least this share of the best fit
LEAST_FIT = 0.5  # minimum fit of a match
SHARPNESS = 30.0  # slope of the sigmoids around these limits
LONG_AGO = 8.0  # log days
# "buy" means any event only if nothing in the data fits better, such as a purchase
BUYING_IS_ANY = 0.67
AFFIRMATIVE = 1.5  # initial bias of the polarity: questions are affirmative by default
NEARLY_ALL = 0.95  # share of the users
OCCURS = MEASURES.index("occurs")
OF_ALL = MEASURES.index("share")
USERS_PER_PASS = 256
PREFIXES_PER_PASS = 32  # keys and values of a prefix are large
MASKED = -1e4  # attention logit of padding

TokenNumbers = Float[Tensor, "user token number"]
Presence = Float[Tensor, "user token"]
WordFit = Float[Tensor, "query thing"]
KnownNumbers = Float[Tensor, "user query prior"]
Scores = Float[Tensor, "user query"]
States = Float[Tensor, "user query state"]
TokenAttention = Float[Tensor, "user query token"]


class QueryStates(NamedTuple):
    """States of questions in a language model, without users. Computed by `LanguageBody.encode`."""

    hidden: Float[Tensor, "query width"]  # of the anchor; input of the first user layer
    words: Float[Tensor, "query word width"]  # of the words; input of the first user layer
    keys: Float[Tensor, "query layer word kv_head head_dim"]  # of the words, after rotary embedding
    values: Float[Tensor, "query layer word kv_head head_dim"]
    mask: Bool[Tensor, "query word"]
    length: Int[Tensor, " query"]

    def at(self, index) -> QueryStates:
        """Select questions and trim the padding.

        Args:
            index: Index array.
        """
        mask = self.mask[index]
        width = int(mask.sum(1).max())
        return QueryStates(
            self.hidden[index],
            self.words[index, :width],
            self.keys[index, :, :width],
            self.values[index, :, :width],
            mask[:, :width],
            self.length[index],
        )


class Anchor(NamedTuple):
    """States of the anchor token, which follows the question and which answers attend to.

    The leading axes are users and questions, or pairs of them.
    """

    hidden: Float[Tensor, "*pair width"]  # output of the last layer
    keys: Float[Tensor, "*pair layer kv_head head_dim"]  # after rotary embedding
    values: Float[Tensor, "*pair layer kv_head head_dim"]
    told: Float[Tensor, "*pair told"]  # extra input of answers: score and standardized state

    def at(self, *index) -> Anchor:
        """Select anchors.

        Args:
            *index: Index array of each leading axis.
        """
        return Anchor(*(part[index] for part in self))


class QuestionInput(NamedTuple):
    """Encoded questions, the input of the reader."""

    vector: Float[Tensor, "query text"]  # unit text vectors of the questions
    content: Float[Tensor, "query text"]  # unit text vectors of their content words
    spelling: Float[Tensor, "query spelling"]  # hashed trigrams of their content words
    phrasing: Float[Tensor, "query text"]  # phrasing vectors, from `wording_vectors`
    horizon: Float[Tensor, " query"]  # log(horizon of the question / default horizon)
    names_one: Float[Tensor, "query topic"]  # 1 if it names only part of a topic
    behavior: Float[Tensor, " query"]  # highest cosine to a question about any event
    states: QueryStates | None = None  # from the language model, if there is one

    def at(self, index) -> QuestionInput:
        """Select questions.

        Args:
            index: Index array.
        """
        *parts, states = self
        states = None if states is None else states.at(index)
        return QuestionInput(*(part[index] for part in parts), states)


class ThingInput(NamedTuple):
    """Things that questions can point at, the input of the reader."""

    vector: Float[Tensor, "thing text"]
    spelling: Float[Tensor, "thing spelling"]
    # 1 for a ratio, or a part of the amount, that nearly all users have
    is_share_of_all: Float[Tensor, " thing"]
    is_number: Float[Tensor, " thing"]  # 1 for a number column
    may_be_meant: Float[Tensor, " thing"]  # 0 for `UserTokens.not_meant`
    aliases: Aliases
    associations: AssociationInput | None = None


class PrefixStates(NamedTuple):
    """Keys and values of users as a prefix. Computed by `UserPrefix.prefill`."""

    keys: Float[Tensor, "user layer token kv_head head_dim"]  # after rotary embedding
    values: Float[Tensor, "user layer token kv_head head_dim"]
    log_presence: Presence  # 0, or a large negative number for padding
    length: Int[Tensor, " user"]  # tokens of the prefix; positions of the question start here


class TokenInput(NamedTuple):
    """User tokens, the input of the reader; fields as in `UserTokens`."""

    which: Int[Tensor, "user token"]  # -1 for padding
    numbers: TokenNumbers
    level: Float[Tensor, "user level"]
    # weight of each token, 1 by default; its gradient is the saliency of the token
    presence: Presence | None = None
    fold: Int[Tensor, " user"] | None = None  # see `score_associations`
    prefix: PrefixStates | None = None  # cached, if a language model reads users as a prefix

    def present(self) -> Presence:
        """Return the presence of each token; 0 for padding."""
        mask = (self.which >= 0).float()
        return mask if self.presence is None else mask * self.presence

    def log_presence(self) -> Presence:
        """Return the attention bias: the log of the presence, or `MASKED` for padding."""
        presence = self.presence
        if presence is None:
            presence = torch.ones_like(self.which, dtype=torch.float32)
        return presence.log().masked_fill(self.which < 0, MASKED)


class BodyInput(NamedTuple):
    """Input of the body of a reader."""

    users: TokenInput
    standard: TokenNumbers  # numbers of the tokens, standardized
    question: QuestionInput  # with `states`, for a language model
    things: ThingInput
    known: KnownNumbers  # inputs of the prior, standardized


Batch = tuple[np.ndarray, PrefixStates | None]  # row numbers of users, and their cached prefix


class Meaning(NamedTuple):
    """Interpretation of questions."""

    relevance: WordFit  # how well each thing matches, 0 to 1
    parts: Float[Tensor, "query thing_or_any"]  # weights of things, any event last; sums to 1
    measure: Float[Tensor, "query measure"]  # probabilities of the measures of concepts


class Reading(NamedTuple):
    """Output of the reader for users and questions."""

    score: Scores  # a logit: the higher, the closer to a yes
    prior: Scores  # part of the score that does not come from the body
    alone: Scores  # separate score from the body without the prior
    attention: TokenAttention  # mean over heads and layers; sums to 1, or 0 without tokens
    embedding: Float[Tensor, "user query dim"]  # of unit length


def _two_layers(n_inputs: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, 64), nn.GELU(), nn.Linear(64, n_outputs))


class PointingBody(nn.Module):
    """Attend to the tokens that a question refers to; the body of a reader without an LLM.

    Softmax heads average the numbers of the tokens; sigmoid heads sum them.

    Args:
        text: Dimension of the text vectors.

    Example:
        >>> PointingBody(text=384).query.in_features
        384
    """

    def __init__(self, text: int):
        super().__init__()
        self.query = nn.Linear(text, HEADS * KEY_DIM)
        self.key = nn.Linear(text, HEADS * KEY_DIM)
        self.scale = nn.Parameter(torch.full((HEADS,), 4.0))
        self.fit_scale = nn.Parameter(torch.tensor(FIT_SCALES))
        self.by_number = nn.Linear(N_TOKEN_NUMBERS, HEADS)
        self.shut = nn.Parameter(torch.full((HEADS,), SHUT))
        self.general = _two_layers(2 * text + 1, GENERAL_DIM)
        self.level_norm = nn.LayerNorm(N_LEVEL_NUMBERS)
        width = 2 * HEADS * N_TOKEN_NUMBERS + 3 * HEADS + N_LEVEL_NUMBERS + GENERAL_DIM
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, HIDDEN_DIM),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(HIDDEN_DIM, STATE_DIM),
            nn.GELU(),
        )

    def match(
        self, question: QuestionInput, things: ThingInput
    ) -> tuple[Float[Tensor, "query head thing"], WordFit]:
        """Compute how well each thing fits each question.

        Args:
            question: The questions.
            things: Things that questions can point at.

        Returns:
            Attention logits, and the fit of the words (see `word_fit`).
        """
        query = self.query(question.content).unflatten(-1, (HEADS, KEY_DIM))
        key = self.key(things.vector).unflatten(-1, (HEADS, KEY_DIM))
        query = F.normalize(query, dim=-1)
        key = F.normalize(key, dim=-1)
        learned = torch.einsum("qhd,thd->qht", query, key) * self.scale[:, None]
        fit = word_fit(question, things)
        return learned + fit[:, None] * self.fit_scale[:, None], fit

    def forward(self, inputs: BodyInput) -> tuple[States, TokenAttention]:
        """Return the state that scores are computed from, and the mean attention of softmax heads.

        Args:
            inputs: Users and questions.
        """
        users, standard, question, things, _ = inputs
        logits, fit = self.match(question, things)
        logits = of_tokens(logits, users)
        fit = of_tokens(fit, users)[:, :, None]
        by_number = self.by_number(standard).transpose(1, 2)[:, None]
        padding = users.log_presence()[:, None, None]
        attention = (logits + by_number + padding).softmax(-1)
        attention = attention * (users.which >= 0)[:, None, None]
        presence = users.present()[:, None, None]
        gate = torch.sigmoid(logits + self.shut[:, None]) * presence
        mean = torch.einsum("uqht,utn->uqhn", attention, standard)
        total = torch.einsum("uqht,utn->uqhn", gate, users.numbers)
        total = torch.log1p(total.clamp(min=0))
        wording = [question.vector, question.phrasing, question.horizon[:, None]]
        general = self.general(torch.cat(wording, -1))
        n_users, n_queries = mean.shape[:2]
        level = self.level_norm(users.level)
        parts = [
            mean.flatten(2),
            total.flatten(2),
            (attention * fit).sum(-1),
            torch.log1p(gate.sum(-1)),
            attention.amax(-1),
            level[:, None].expand(-1, n_queries, -1),
            general[None].expand(n_users, -1, -1),
        ]
        return self.layers(torch.cat(parts, -1)), attention.mean(2)


class PointingReader(nn.Module):
    """Score users for questions from their own tokens.

    The score is the sum of two parts: a prior, linear in the user's past activity that the question
    refers to, and a correction computed by a body. The body is a `PointingBody`, or a
    `LanguageBody`, in which a language model reads the tokens. The prior is not in the paper.

    Args:
        text: Dimension of the text vectors.
        body: Body (default: a `PointingBody`).

    Example:
        >>> PointingReader(text=384).polarity[0].out_features
        64
    """

    def __init__(self, text: int, body: nn.Module | None = None):
        super().__init__()
        self.body = PointingBody(text) if body is None else body
        self.polarity = _two_layers(2 * text, 1)
        self.out = nn.Linear(STATE_DIM, 1)
        self.alone = nn.Linear(STATE_DIM, 1)
        self.intent = _two_layers(2 * text, len(MEASURES))
        self.prior = nn.Linear(N_PRIOR_NUMBERS, len(PRIOR_KINDS) * len(MEASURES))
        nn.init.constant_(self.polarity[-1].bias, AFFIRMATIVE)
        for weight in (*self.prior.parameters(), *self.out.parameters()):
            nn.init.zeros_(weight)
        self.register_buffer("wording_mean", torch.zeros(2 * text))
        sizes = {"": N_TOKEN_NUMBERS, "known_": N_PRIOR_NUMBERS, "state_": STATE_DIM}
        for name, size in sizes.items():
            self.register_buffer(f"{name}mean", torch.zeros(size))
            self.register_buffer(f"{name}spread", torch.ones(size))
        self.register_buffer("directions", nn.init.orthogonal_(torch.empty(text, TEXT_DIM)))
        self.register_buffer("profile_mean", torch.zeros(text))
        self.register_buffer("profile_directions", torch.zeros(text, PROFILE_DIM))

    @property
    def has_language_model(self) -> bool:
        """Return whether a language model reads the tokens."""
        return not isinstance(self.body, PointingBody)

    def threads(self) -> AbstractContextManager:
        """Return a context that limits torch to one thread, unless there is a language model."""
        return nullcontext() if self.has_language_model else single_thread()

    def read_words(self, question: QuestionInput, queries: Sequence[str]) -> QuestionInput:
        """Add the `states` of the questions in the language model, if there is one.

        Args:
            question: The questions.
            queries: Texts of the questions, with "user" in place of the unit word.
        """
        if not self.has_language_model:
            return question
        return question._replace(states=self.body.encode(queries))

    def sign(self, question: QuestionInput) -> Float[Tensor, " query"]:
        """Return the sign of each question, from -1 (negated) to 1 (affirmative).

        Args:
            question: The questions.
        """
        return torch.tanh(self.polarity(self.wording(question)))[:, 0]

    def wording(self, question: QuestionInput) -> Float[Tensor, "query wording"]:
        """Return the features that the sign and the measure of each question are predicted from.

        Args:
            question: The questions.
        """
        return torch.cat([question.vector, question.phrasing], -1) - self.wording_mean

    def meaning(self, question: QuestionInput, things: ThingInput) -> Meaning:
        """Return what each question asks for: which things, and what it measures of them.

        Whether something occurs is uninformative if nearly all users have it. For ratios and parts
        of the amount that nearly all users have, "occurs" therefore becomes "share".

        Args:
            question: The questions.
            things: Things that questions can point at.
        """
        fit = word_fit(question, things)
        relevant = relevance(fit)
        least = question.behavior.clamp(min=LEAST_FIT)[:, None]  # below it: any event
        named = torch.sigmoid(SHARPNESS * (fit.amax(1, keepdim=True) - least))
        of_things = relevant / relevant.sum(1, keepdim=True).clamp(min=1e-9) * named
        measure = self.intent(self.wording(question)).softmax(-1)
        moved = measure[:, OCCURS] * (of_things * things.is_share_of_all).sum(1)
        change = torch.stack([-moved, moved], 1)
        measure = measure.index_add(1, torch.tensor([OCCURS, OF_ALL]), change)
        return Meaning(relevant, torch.cat([of_things, 1 - named], 1), measure)

    def forward(self, users: TokenInput, question: QuestionInput, things: ThingInput) -> Reading:
        inputs, prior = self._body_and_prior(users, question, things)
        sign = self.sign(question)
        prior = prior * sign
        state, attention = self.body(inputs)
        score = prior + self.out(state)[..., 0] * sign
        alone = self.alone(state)[..., 0] * sign
        text = things.vector @ self.directions
        pointed_at = torch.einsum("uqt,utd->uqd", attention, text[users.which.clamp(min=0)])
        profile = (mean_text(users, things) - self.profile_mean) @ self.profile_directions
        embedding = self.embed(score, pointed_at, profile, state)
        return Reading(score, prior, alone, attention, embedding)

    def _body_and_prior(
        self, users: TokenInput, question: QuestionInput, things: ThingInput
    ) -> tuple[BodyInput, Scores]:
        """Return the input of the body, and the prior score without its sign."""
        meaning = self.meaning(question, things)
        known = self.known_numbers(users, meaning, things)
        inputs = self.body_input(users, question, things, known)
        prior = self.prior(known) * self.prior_shares(meaning, things)
        return inputs, prior.sum(-1)

    def prior_shares(
        self, meaning: Meaning, things: ThingInput
    ) -> Float[Tensor, "query kind_and_measure"]:
        """Return the weight of each prior for each question; the weights sum to 1.

        There is one prior for each pair of a kind in `PRIOR_KINDS` and a measure.

        Args:
            meaning: Interpretation of the questions.
            things: Things that the tokens refer to.
        """
        of_any = meaning.parts[:, -1:]
        of_number = (meaning.parts[:, :-1] * things.is_number).sum(1, keepdim=True)
        shares = torch.stack([1 - of_any - of_number, of_any, of_number], 1)
        return (shares * meaning.measure[:, None]).flatten(1)

    def body_input(
        self,
        users: TokenInput,
        question: QuestionInput,
        things: ThingInput,
        known: KnownNumbers,
    ) -> BodyInput:
        """Return the input of the body.

        Args:
            users: Tokens of the users.
            question: The questions.
            things: Things that the tokens refer to.
            known: Inputs of the prior, from `known_numbers`.
        """
        known = (known - self.known_mean) / self.known_spread
        return BodyInput(users, self._standardize(users), question, things, known)

    def _standardize(self, users: TokenInput) -> TokenNumbers:
        return (users.numbers - self.mean) / self.spread

    def _standardize_state(self, state: States) -> States:
        return (state - self.state_mean) / self.state_spread

    @property
    def reads_prefix(self) -> bool:
        """Return whether a language model reads users as a prefix, which can be cached."""
        return hasattr(self.body, "prefill")

    @property
    def users_per_pass(self) -> int:
        """Return how many users to process per forward pass."""
        return PREFIXES_PER_PASS if self.reads_prefix else USERS_PER_PASS

    def prefill(self, users: TokenInput, things: ThingInput) -> PrefixStates:
        """Run users through the language model as a prefix, to be cached.

        Args:
            users: Tokens of the users.
            things: Things that the tokens refer to.
        """
        return self.body.prefill(users, self._standardize(users), things)

    def anchor(self, users: TokenInput, question: QuestionInput, things: ThingInput) -> Anchor:
        """Return the anchor of each user and question, with the extra input of answers (`told`).

        Args:
            users: Tokens of the users.
            question: The questions, with `states` from the language model.
            things: Things that the tokens refer to.
        """
        inputs, prior = self._body_and_prior(users, question, things)
        anchor, _ = self.body.anchor(inputs)
        state = self.body.state(anchor.hidden)
        correction = self.out(state)[..., 0]
        score = (prior + correction) * self.sign(question)
        standard = self._standardize_state(state)
        return anchor._replace(told=torch.cat([score[..., None], standard], -1))

    def score_answers(
        self,
        users: TokenInput,
        question: QuestionInput,
        things: ThingInput,
        query: str,
        answers: Sequence[str],
    ) -> Float[Tensor, "user answer"]:
        """Return the log-likelihood of each answer for each user, relative to an unknown user.

        Args:
            users: Tokens of the users.
            question: One question, with `states` from the language model.
            things: Things that the tokens refer to.
            query: Text of the question, with "user" in place of the unit word.
            answers: Possible answers to the question.

        Returns:
            log p(answer | user, question) - log p(answer | question).
        """
        encoded = self.body.encode_answers([query] * len(answers), answers)
        anchor = self.anchor(users, question, things)
        return self.body.score_answers(anchor, question.states, encoded)

    def known_numbers(
        self, users: TokenInput, meaning: Meaning, things: ThingInput
    ) -> KnownNumbers:
        """Return the inputs of the prior for each user and question.

        They say how often, how recently and how much the user did what the question refers to, how
        strongly other activity is associated with it, and how active the user is overall.

        Args:
            users: Tokens of the users.
            meaning: Interpretation of the questions.
            things: Things that the tokens refer to.
        """
        meant = of_tokens(meaning.relevance, users) * users.present()[:, None]
        last, first, largest, share = users.numbers[:, None, :, MEANT].unbind(-1)
        totals = torch.einsum("uqt,utn->uqn", meant, users.numbers[..., SUMMED].expm1())
        totals = torch.log1p(totals.clamp(min=0))
        level = users.level[:, None].expand(-1, meant.shape[1], -1)
        tenure = level[..., TENURE]
        inputs = [
            (meant * (LONG_AGO - last)).amax(-1),
            (meant * first).amax(-1),
            (meant * largest).amax(-1),
            (meant * share).sum(-1).clamp(max=1),
            totals[..., 0] - tenure,  # log of events per day since the user's first event
            level[..., DAYS] - tenure,
            self.association_score(users, meaning, things),
        ]
        inputs = torch.stack(inputs, -1)
        return torch.cat([totals, inputs, level[..., PRIOR_LEVELS]], -1)

    def association_score(self, users: TokenInput, meaning: Meaning, things: ThingInput) -> Scores:
        """Return how strongly all activity of each user is associated with what each question asks.

        Args:
            users: Tokens of the users.
            meaning: Interpretation of the questions.
            things: Things that the tokens refer to.
        """
        if things.associations is None:
            return users.level.new_zeros(len(users.level), len(meaning.parts))
        numbers = users.numbers[..., ASSOCIATED] * users.present()[..., None]
        features = association_features(
            users.which, numbers, users.level, things.associations.factors
        )
        return score_associations(
            features, things.associations, meaning.parts, meaning.measure, users.fold
        )

    def embed(
        self,
        score: Scores,
        pointed_at: Float[Tensor, "user query text"],
        profile: Float[Tensor, "user profile"],
        state: States,
    ) -> Float[Tensor, "user query dim"]:
        """Return unit embeddings: score, pointed-at texts, profile and state, concatenated.

        Args:
            score: Scores.
            pointed_at: Mean text vector of each user's tokens, weighted by attention; projected.
            profile: Mean text vector of all tokens of each user, centered and projected.
            state: State that the scores are computed from.
        """
        parts = [
            SCORE_SCALE * score[..., None],
            F.normalize(pointed_at, dim=-1),
            profile[:, None].expand(-1, score.shape[1], -1),
            F.normalize(self._standardize_state(state), dim=-1),
        ]
        return F.normalize(torch.cat(parts, -1), dim=-1)


def of_tokens(
    of_things: Float[Tensor, "query *head thing"], users: TokenInput
) -> Float[Tensor, "user query *head token"]:
    """Look up the thing of each token.

    Args:
        of_things: A number for each thing.
        users: Tokens of the users.
    """
    return of_things[..., users.which.clamp(min=0)].movedim(-2, 0)


def mean_text(users: TokenInput, things: ThingInput) -> Float[Tensor, "user text"]:
    """Return the mean text vector of all tokens of each user, weighted by log counts.

    Args:
        users: Tokens of the users.
        things: Things that the tokens refer to.
    """
    weight = users.numbers[..., COUNT] * users.present()
    of_thing = weight.new_zeros(len(weight), len(things.vector))
    of_thing = of_thing.scatter_add(1, users.which.clamp(min=0), weight)
    return of_thing @ things.vector / weight.sum(1, keepdim=True).clamp(min=1e-9)


def is_pretrained(name: str) -> bool:
    """Return whether a tensor of a reader is a pretrained weight of the language model.

    Args:
        name: Name in the state dict of the reader.
    """
    return name.startswith("body.backbone.") and "lora_" not in name


def word_fit(question: QuestionInput, things: ThingInput) -> WordFit:
    """Return how well the words of each thing fit each question, at least 0. Nothing is learned.

    The fit is the cosine of text vectors plus half the cosine of spellings. If an alias fits a
    question better than the words of any thing do, the things of the alias get its fit. Things that
    must not be matched get 0.

    Args:
        question: The questions.
        things: Things that questions can point at.
    """
    by_meaning = question.content @ things.vector.T
    by_spelling = question.spelling @ things.spelling.T
    own = by_meaning + by_spelling / 2
    match = things.aliases.match(question.content, question.spelling, question.names_one)
    of_alias = (match[:, :, None] * things.aliases.members).amax(1)
    is_better = of_alias.amax(1, keepdim=True) > own.amax(1, keepdim=True)
    return torch.maximum(own, of_alias * is_better) * things.may_be_meant


def relevance(fit: WordFit) -> WordFit:
    """Return how well each thing matches each question, 0 to 1: near 1 if it fits almost best.

    Args:
        fit: Fit of the words, from `word_fit`.
    """
    best = fit.amax(1, keepdim=True)
    least = RELATIVE_FIT * best.clamp(min=LEAST_FIT / RELATIVE_FIT)
    return torch.sigmoid(SHARPNESS * (fit - least))


def question_input(
    queries: Sequence[str], unit: str, encoder: str, horizons: Sequence[float], own: float
) -> QuestionInput:
    """Encode questions for the reader.

    Args:
        queries: The questions.
        unit: Singular noun for a user; it is replaced by "user".
        encoder: Text encoder.
        horizons: Number of days that each question looks ahead.
        own: Default horizon of the users in days.
    """
    texts = [plain_words(replace_unit(query, unit)) for query in queries]
    content = [content_words(text) for text in texts]
    wording = wording_vectors(texts, encoder)
    vector, phrasing = np.split(wording, 2, axis=1)
    arrays = {
        "vector": vector,
        "content": _float_vectors(content, encoder),
        "spelling": spelling_vectors(content),
        "phrasing": phrasing,
        "horizon": np.log(np.asarray(horizons) / own),
        "names_one": names_one(texts),
        "behavior": _behavior_similarity(texts, encoder),
    }
    return QuestionInput(**{name: _float_tensor(array) for name, array in arrays.items()})


def _behavior_similarity(texts: Sequence[str], encoder: str) -> np.ndarray:
    """Return the highest cosine of each question to a question about any event."""
    contents = [content_words(query) for query in behavior_queries()]
    behaviors = _float_vectors(list(dict.fromkeys(contents)), encoder)
    anywhere = [content_words(PLACE.sub("", text)) for text in texts]
    similarity = (_float_vectors(anywhere, encoder) @ behaviors.T).max(1, initial=0)
    is_buying = [BUYING.issuperset(text.split()) for text in anywhere]
    return np.where(is_buying, similarity.clip(max=BUYING_IS_ANY), similarity)


def _float_vectors(texts: Sequence[str], encoder: str) -> np.ndarray:
    return text_vectors(texts, encoder).astype(np.float32)


def _float_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def replace_unit(query: str, unit: str) -> str:
    """Return a question with "user" in place of the unit word.

    Args:
        query: The question.
        unit: Singular noun for a user, such as "customer"; its plural is replaced, too.

    Example:
        >>> replace_unit("Will this customer pay?", "customer")
        'Will this user pay?'
    """
    words = {unit.lower(): "user", plural(unit.lower()): "users"}
    pattern = "|".join(re.escape(word) for word in words)
    pattern = re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)
    return pattern.sub(lambda match: words[match[0].lower()], query)


def thing_input(tokens: UserTokens) -> ThingInput:
    """Return the things of user tokens as tensors.

    Args:
        tokens: The tokens.
    """
    population = tokens.population
    is_part = population.share_base > 0
    is_frequent = population.rarity < -np.log(NEARLY_ALL)
    is_number = [thing.kind == "number" for thing in tokens.things]
    may_be_meant = [thing.label not in tokens.not_meant for thing in tokens.things]
    associations = population.associations
    return ThingInput(
        torch.from_numpy(tokens.vectors),
        torch.from_numpy(tokens.spelling),
        _float_tensor(is_part & is_frequent),
        torch.tensor(is_number).float(),
        torch.tensor(may_be_meant).float(),
        tokens.aliases,
        None if associations is None else associations.tensors(),
    )


def token_input(tokens: UserTokens, rows=slice(None)) -> TokenInput:
    """Return the tokens of some users as tensors, with trailing padding trimmed.

    Args:
        tokens: The tokens.
        rows: Row numbers (default: all).
    """
    which = tokens.which[rows]
    width = max(int((which >= 0).sum(1).max(initial=0)), 1)
    # hidden tokens leave gaps, so a token may lie beyond the width; then nothing is trimmed
    if (which[:, width:] >= 0).any():
        width = which.shape[1]
    return TokenInput(
        which=torch.from_numpy(which[:, :width]),
        numbers=torch.from_numpy(tokens.numbers[rows][:, :width]),
        level=torch.from_numpy(tokens.level[rows]),
        fold=None if tokens.fold is None else torch.from_numpy(tokens.fold[rows]),
    )


def iter_readings(
    reader: PointingReader,
    tokens: UserTokens,
    question: QuestionInput,
    batches: Iterable[Batch],
) -> Iterator[tuple[np.ndarray, Reading]]:
    """Run the reader batch by batch.

    Args:
        reader: Trained reader.
        tokens: Tokens of the users.
        question: The questions.
        batches: Row numbers of the users of each batch, and their cached prefix or None.

    Yields:
        Row numbers of a batch, and the output of the reader. Attention is as wide as the longest
        user of the batch.
    """
    things = thing_input(tokens)
    for rows, prefix in batches:
        with reader.threads(), torch.inference_mode():
            users = token_input(tokens, rows)._replace(prefix=prefix)
            reading = reader(users, question, things)
        yield rows, reading


def token_gradients(
    reader: PointingReader, users: TokenInput, question: QuestionInput, things: ThingInput
) -> Float[np.ndarray, "user token"]:
    """Return the gradient of the score with respect to the presence of each token.

    Unlike attention weights, it covers all paths from tokens to the score. It is local: it is 0
    where another token alone sets a maximum, such as the most recent time. The saliency of a group
    of tokens is the absolute value of the sum of their gradients.

    Args:
        reader: Trained reader.
        users: Tokens of the users.
        question: One question.
        things: Things that the tokens refer to.
    """
    presence = torch.ones(users.which.shape, requires_grad=True)
    score = reader(users._replace(presence=presence), question, things).score
    (gradient,) = torch.autograd.grad(score.sum(), presence)
    return gradient.numpy()


def join(parts: Sequence[tuple], operation: Callable[[Sequence], Tensor] = torch.cat) -> Any:
    """Join named tuples of tensors, field by field.

    Args:
        parts: Named tuples of one type.
        operation: How the tensors of a field are joined (default: concatenated).
    """
    fields = zip(*parts, strict=True)
    return type(parts[0])(*(operation(field) for field in fields))


def row_batches(n_users: int, per_pass: int) -> list[np.ndarray]:
    """Split the row numbers of users into batches.

    Args:
        n_users: Number of users.
        per_pass: Maximum number of users per batch.
    """
    return np.split(np.arange(n_users), range(per_pass, n_users, per_pass))


def read_questions(
    reader: PointingReader,
    tokens: UserTokens,
    question: QuestionInput,
    batches: Iterable[Batch] | None = None,
) -> Reading:
    """Run the reader on all users, batch by batch, and return the combined output.

    Args:
        reader: Trained reader.
        tokens: Tokens of the users.
        question: The questions.
        batches: Row numbers of the users of each batch, in order, and their cached prefix or None
            (default: batches without cached prefixes).
    """
    width = tokens.which.shape[1]
    parts = []
    if batches is None:
        batches = [(rows, None) for rows in row_batches(len(tokens), reader.users_per_pass)]
    for _, reading in iter_readings(reader, tokens, question, batches):
        padding = width - reading.attention.shape[-1]
        attention = F.pad(reading.attention, (0, padding))
        parts.append(reading._replace(attention=attention))
    return join(parts)
