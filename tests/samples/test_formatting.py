import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.samples.formatting import Formatter, pair_text

MULTI_TURN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": "And a capital?"},
]


def text(formatter, encoded):
    return formatter.tokenizer.decode(encoded.input_ids)


def prompt_text(formatter, encoded):
    return formatter.tokenizer.decode(encoded.input_ids[: encoded.prompt_len])


def test_a_chat_sample_is_bos_prompt_response_eos(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True)
    encoded = formatter.encode("Name a prime.", "Seven.")
    assert text(formatter, encoded) == (
        "<s><|im_start|>user\nName a prime.<|im_end|>\n<|im_start|>assistant\nSeven.<|im_end|>"
    )
    assert prompt_text(formatter, encoded) == "<s><|im_start|>user\nName a prime.<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_writes_its_own_bos_and_no_eos_gets_one_of_each(turns_tokenizer):
    formatter = Formatter(turns_tokenizer, chat_template=True)
    encoded = formatter.encode("Hello", "Fine.")
    assert text(formatter, encoded) == "<s><turn>user\nHello</turn>\n<turn>assistant\nFine.</turn>\n<|im_end|>"
    assert encoded.input_ids.count(turns_tokenizer.bos_token_id) == 1
    assert prompt_text(formatter, encoded) == "<s><turn>user\nHello</turn>\n<turn>assistant\n"


def test_a_tokenizer_without_bos_gets_none(no_bos_tokenizer):
    encoded = Formatter(no_bos_tokenizer, chat_template=True).encode("Hello", "Fine.")
    assert encoded.input_ids[0] == no_bos_tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_the_prompt_is_everything_before_the_last_assistant_turn(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True)
    encoded = formatter.encode(MULTI_TURN, "Paris.")
    assert prompt_text(formatter, encoded) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a prime.<|im_end|>\n"
        "<|im_start|>assistant\nSeven.<|im_end|>\n<|im_start|>user\nAnd a capital?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(formatter, encoded).endswith("<|im_start|>assistant\nParis.<|im_end|>")


def test_a_text_prompt_is_a_single_user_turn(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True)
    assert formatter.encode("Hello", "Hi") == formatter.encode([{"role": "user", "content": "Hello"}], "Hi")


def test_plain_text_is_joined_as_it_is_or_through_the_input_template(plain_tokenizer):
    plain = Formatter(plain_tokenizer, chat_template=False)
    assert text(plain, plain.encode("Q: Hello\nA:", " Fine.")) == "<s>Q: Hello\nA: Fine.<|im_end|>"
    templated = Formatter(plain_tokenizer, chat_template=False, input_template="Q: {}\nA:")
    assert templated.encode("Hello", " Fine.") == plain.encode("Q: Hello\nA:", " Fine.")


def test_a_response_that_ends_with_the_eos_text_is_the_same_response(chat_tokenizer, turns_tokenizer):
    for formatter in (
        Formatter(chat_tokenizer, chat_template=True),
        Formatter(chat_tokenizer, chat_template=False),
        Formatter(turns_tokenizer, chat_template=True),
    ):
        assert formatter.encode("Hello", "Fine.<|im_end|>") == formatter.encode("Hello", "Fine.")


def test_an_eos_text_inside_a_response_stays_there(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True)
    encoded = formatter.encode("Hello", "Fine.<|im_end|>Yes")
    assert text(formatter, encoded).endswith("Fine.<|im_end|>Yes<|im_end|>")
    assert encoded.input_ids.count(chat_tokenizer.eos_token_id) == 2  # the text is read as text


def test_white_space_at_the_end_of_a_plain_response_is_kept(plain_tokenizer):
    formatter = Formatter(plain_tokenizer, chat_template=False)
    assert text(formatter, formatter.encode("Hello", " Fine. \n")) == "<s>Hello Fine. \n<|im_end|>"


def test_an_empty_response_is_the_prompt_and_eos(chat_tokenizer, plain_tokenizer):
    for formatter in (Formatter(chat_tokenizer, chat_template=True), Formatter(plain_tokenizer, chat_template=False)):
        encoded = formatter.encode("Hello", "")
        assert len(encoded.input_ids) == encoded.prompt_len + 1
        assert encoded.input_ids[-1] == formatter.tokenizer.eos_token_id


def test_decision_5_the_prompt_is_tokenised_alone_though_a_response_would_merge_with_it(plain_tokenizer):
    prompt, response = "What is the capital of Fr", "ance?"
    former = Formatter(plain_tokenizer, chat_template=False, format_version=1).encode(prompt, response)
    alone = [plain_tokenizer.bos_token_id, *plain_tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    assert former.prompt_len < len(alone), "this test needs a merge across the border"
    assert former.input_ids[: former.prompt_len] == alone[: former.prompt_len]
    encoded = Formatter(plain_tokenizer, chat_template=False).encode(prompt, response)
    assert encoded.input_ids[: encoded.prompt_len] == alone
    assert encoded.input_ids[len(alone) : -1] == plain_tokenizer(response, add_special_tokens=False)["input_ids"]


def test_an_empty_prompt_without_bos_still_leaves_a_token_to_the_gate(no_bos_tokenizer):
    encoded = Formatter(no_bos_tokenizer, chat_template=False).encode("", "Hello")
    assert encoded.prompt_len == 1
    assert encoded.input_ids[0] == no_bos_tokenizer.eos_token_id  # whatever the response


def test_a_long_response_is_cut_and_still_ends_with_eos(chat_tokenizer):
    whole = Formatter(chat_tokenizer, chat_template=True).encode("Name a prime.", "Seven. " * 50)
    cut = Formatter(chat_tokenizer, chat_template=True, max_len=40).encode("Name a prime.", "Seven. " * 50)
    assert cut.input_ids == [*whole.input_ids[:39], chat_tokenizer.eos_token_id]
    assert cut.prompt_len == whole.prompt_len


def test_format_1_leaves_one_eos_of_a_cut_right_behind_an_eos_text(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=False, max_len=6, format_version=1)
    encoded = formatter.encode("user", "ab<|im_end|><|im_end|>cdefghij")
    assert text(formatter, encoded) == "<s>userab<|im_end|>"


def test_a_tokenizer_whose_bos_is_its_eos_keeps_both(new_tokenizer):
    tokenizer = new_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token  # as GPT-2's
    encoded = Formatter(tokenizer, chat_template=False).encode("", "")
    assert (encoded.input_ids, encoded.prompt_len) == ([1, 1], 1)


def test_a_sample_of_exactly_max_len_is_not_cut(chat_tokenizer):
    whole = Formatter(chat_tokenizer, chat_template=True).encode("Hello", "Fine.")
    assert (
        Formatter(chat_tokenizer, chat_template=True, max_len=len(whole.input_ids)).encode("Hello", "Fine.") == whole
    )


def test_a_prompt_that_leaves_no_room_is_an_error_that_says_what_to_do(chat_tokenizer):
    encoded = Formatter(chat_tokenizer, chat_template=True).encode("Hello", "Fine, thank you.")
    for max_len in (encoded.prompt_len, encoded.prompt_len + 1):  # the second has room for the EOS alone
        formatter = Formatter(chat_tokenizer, chat_template=True, max_len=max_len)
        with pytest.raises(
            ValueError, match=rf"{encoded.prompt_len} tokens.*no room.*max_len {max_len}.*--data.max_l"
        ):
            formatter.encode("Hello", "Fine, thank you.")
    Formatter(chat_tokenizer, chat_template=True, max_len=encoded.prompt_len + 2).encode("Hello", "Fine, thank you.")


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=12), response=st.text(max_size=12), chat=st.booleans(), max_len=st.integers(70, 90))
def test_any_text_has_one_bos_one_eos_and_its_prompt_in_front(chat_tokenizer, prompt, response, chat, max_len):
    tokenizer = chat_tokenizer
    formatter = Formatter(tokenizer, chat_template=chat, max_len=max_len)
    encoded = formatter.encode(prompt, response)
    ids = encoded.input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[-2] != tokenizer.eos_token_id
    assert len(ids) <= max_len
    assert 1 <= encoded.prompt_len < len(ids)
    alone = [
        tokenizer.bos_token_id,
        *tokenizer(formatter.render(prompt, "")[0], add_special_tokens=False)["input_ids"],
    ]
    assert ids[: encoded.prompt_len] == alone


# Other conventions than ours: those of the GPM authors' checkpoints


@pytest.fixture
def adding_tokenizer(new_tokenizer):
    """As Gemma's and Llama 3's: the tokenizer puts a BOS in front of a text whose template wrote one already."""
    from tokenizers.processors import TemplateProcessing

    turns = (
        "{{ bos_token }}{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '</turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
    )
    tokenizer = new_tokenizer(turns)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def authors(tokenizer, **changes):
    settings = {"chat_template": True, "generation_prompt": False, "bos": "tokenizer", "eos": "replace"} | changes
    return Formatter(tokenizer, **settings)


def test_the_authors_sample_has_two_bos_an_eos_for_its_last_token_and_a_prompt_without_generation_prompt(
    adding_tokenizer,
):
    formatter = authors(adding_tokenizer)
    encoded = formatter.encode("Hello", "Fine.")
    # The template ends in a newline, the last token, which becomes the EOS.
    assert text(formatter, encoded) == "<s><s><turn>user\nHello</turn>\n<turn>assistant\nFine.</turn><|im_end|>"
    assert prompt_text(formatter, encoded) == "<s><s><turn>user\nHello</turn>\n"


def test_each_convention_is_a_choice_of_its_own(adding_tokenizer):
    def texts(**changes):
        ours = {"generation_prompt": True, "bos": "one", "eos": "append"}
        formatter = authors(adding_tokenizer, **(ours | changes))
        encoded = formatter.encode("Hi", "Yes")
        return prompt_text(formatter, encoded), text(formatter, encoded)[len(prompt_text(formatter, encoded)) :]

    assert texts() == ("<s><turn>user\nHi</turn>\n<turn>assistant\n", "Yes</turn>\n<|im_end|>")
    assert texts(generation_prompt=False) == (
        "<s><turn>user\nHi</turn>\n",
        "<turn>assistant\nYes</turn>\n<|im_end|>",
    )
    assert texts(bos="tokenizer") == ("<s><s><turn>user\nHi</turn>\n<turn>assistant\n", "Yes</turn>\n<|im_end|>")
    assert texts(eos="replace") == ("<s><turn>user\nHi</turn>\n<turn>assistant\n", "Yes</turn><|im_end|>")


def test_replacing_takes_the_last_token_of_the_text_even_behind_an_eos(chat_tokenizer):
    """ChatML ends a turn with EOS and newline: it is the newline that is replaced, as by the authors' scripts."""
    formatter = authors(chat_tokenizer)
    assert text(formatter, formatter.encode("Hi", "Yes")).endswith("assistant\nYes<|im_end|><|im_end|>")


def test_a_tokenizer_that_adds_no_bos_gets_none_under_bos_tokenizer(plain_tokenizer):
    formatter = Formatter(plain_tokenizer, chat_template=False, bos="tokenizer")
    assert text(formatter, formatter.encode("Hello", " you")) == "Hello you<|im_end|>"


def test_replacing_cuts_a_long_sample_to_max_len_with_the_eos_last(adding_tokenizer):
    whole = authors(adding_tokenizer).encode("Hi", "Seven. " * 50)
    cut = authors(adding_tokenizer, max_len=30).encode("Hi", "Seven. " * 50)
    assert cut.input_ids == [*whole.input_ids[:29], adding_tokenizer.eos_token_id]
    assert cut.prompt_len == whole.prompt_len
    exact = authors(adding_tokenizer, max_len=len(whole.input_ids)).encode("Hi", "Seven. " * 50)
    assert exact == whole
    with pytest.raises(ValueError, match="no room for the response within max_len"):
        authors(adding_tokenizer, max_len=whole.prompt_len + 1).encode("Hi", "Seven. " * 50)


def test_the_token_that_is_replaced_is_never_part_of_the_prompt(plain_tokenizer):
    formatter = Formatter(plain_tokenizer, chat_template=False, eos="replace")
    encoded = formatter.encode("Hello", "")
    assert encoded.input_ids[-1] == plain_tokenizer.eos_token_id
    assert encoded.prompt_len == len(encoded.input_ids) - 1


def test_a_convention_that_does_not_exist_is_an_error(plain_tokenizer):
    with pytest.raises(ValueError, match="bos must be one of one, tokenizer; got 'none'"):
        Formatter(plain_tokenizer, chat_template=False, bos="none")
    with pytest.raises(ValueError, match="eos must be one of append, replace; got 'drop'"):
        Formatter(plain_tokenizer, chat_template=False, eos="drop")


# Pairwise encoders


def test_a_pair_text_by_hand():
    assert pair_text("Seven.", "Nine.\nOr two.") == "[RESPONSE A]\nSeven.\n[RESPONSE B]\nNine.\nOr two."


@given(first=st.text(max_size=8), second=st.text(max_size=8))
def test_a_pair_text_tells_the_two_orders_apart(first, second):
    swapped = pair_text(second, first)
    assert (pair_text(first, second) == swapped) == (first == second)


def test_a_pair_text_is_formatted_as_any_response(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True)
    encoded = formatter.encode("Name a prime.", pair_text("Seven.", "Nine."))
    assert prompt_text(formatter, encoded).endswith("<|im_start|>assistant\n")
    assert text(formatter, encoded).endswith("assistant\n[RESPONSE A]\nSeven.\n[RESPONSE B]\nNine.<|im_end|>")


def test_messages_without_a_template_are_an_error(plain_tokenizer):
    with pytest.raises(ValueError, match="messages need a chat template"):
        Formatter(plain_tokenizer, chat_template=False).encode(MULTI_TURN, "Paris.")


def test_what_the_template_refuses_is_an_error_with_the_templates_own_words(turns_tokenizer):
    with pytest.raises(ValueError, match="template rejects these messages: System role not supported"):
        Formatter(turns_tokenizer, chat_template=True).encode(MULTI_TURN, "Paris.")


def test_a_tokenizer_that_lacks_what_is_asked_is_an_error(plain_tokenizer, new_tokenizer):
    with pytest.raises(ValueError, match=r"no chat template.*--data.tokenizer_chat_template"):
        Formatter(plain_tokenizer, chat_template=True)
    mute = new_tokenizer()
    mute.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        Formatter(mute, chat_template=True)


def test_both_kinds_of_template_at_once_are_an_error(chat_tokenizer):
    with pytest.raises(ValueError, match=r"--data.input_template is for plain text"):
        Formatter(chat_tokenizer, chat_template=True, input_template="Q: {}")


def test_the_checkpoints_config_makes_the_formatter_it_was_trained_with(plain_tokenizer):
    config = GPMConfig(chat_template=False, input_template="Q: {}\nA:", max_len=30)
    formatter = Formatter.from_config(plain_tokenizer, config)
    assert (formatter.chat_template, formatter.input_template, formatter.max_len) == (False, "Q: {}\nA:", 30)
    assert (formatter.generation_prompt, formatter.bos, formatter.eos) == (True, "one", "append")
    config = GPMConfig(chat_template=False, generation_prompt=False, bos="tokenizer", eos="replace")
    formatter = Formatter.from_config(plain_tokenizer, config)
    assert (formatter.generation_prompt, formatter.bos, formatter.eos) == (False, "tokenizer", "replace")


def test_the_padding_id_is_the_eos_where_there_is_no_padding_token(chat_tokenizer, new_tokenizer):
    assert Formatter(chat_tokenizer, chat_template=True).pad_token_id == 2
    assert Formatter(new_tokenizer(pad=False), chat_template=True).pad_token_id == 1


def test_a_cut_response_is_marked(chat_tokenizer):
    formatter = Formatter(chat_tokenizer, chat_template=True, max_len=40)
    assert not formatter.encode("Hi", "short").truncated
    assert formatter.encode("Hi", "long " * 40).truncated
