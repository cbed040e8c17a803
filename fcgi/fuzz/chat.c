/*
 * chat.c
 *	  Fuzz target: a request's body, and what the upstream gets of it.
 *
 * Input: "1" or "0", whether a body that does not say so asks for a stream; then the body.
 * The same text is also read as a request for embeddings, and as an upstream's answer.
 */
#include "fuzz.h"

#include "../chat.h"
#include "../members.h"

#include <ctype.h>
#include <stdbool.h>

#define MODEL "a model, \"quoted\""

/* Of any value. */
static json_t *
read_any(const char *text, size_t length)
{
	/* which jansson passes over behind a number */
	if (length == 0 || memchr(text, '\0', length) != NULL)
		return NULL;
	return json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL,
					  NULL);
}

static bool
is_one_of(const char *value, const char *const names[])
{
	while (*names != NULL && strcmp(value, *names) != 0)
		names++;
	return *names != NULL;
}

/* ---- what the upstream gets ---- */

/* Whether the names are the same to anyone, also to who disregards case, to whom U+017F is an s. */
static bool
is_alike(const char *name, const char *other)
{
	for (; *name != '\0' && *other != '\0'; other++)
	{
		bool long_s = strncmp(name, "\u017f", 2) == 0;

		if ((long_s ? 's' : tolower((unsigned char) *name)) != *other)
			return false;
		name += long_s ? 2 : 1;
	}
	return *name == *other;
}

/* Removes all that are like one of the names; gives their number. */
static size_t
remove_alike(json_t *object, const char *const names[])
{
	const char *name;
	json_t *value;
	void *next;
	size_t removed = 0;

	for (; *names != NULL; names++)
	{
		json_object_foreach_safe(object, next, name, value)
		{
			if (is_alike(name, *names))
				removed += json_object_del(object, name) == 0;
		}
	}
	return removed;
}

/* Appends the text without the white space between its tokens. */
static void
append_compact(Buffer *compact, const char *text, size_t length)
{
	bool quoted = false;

	for (size_t i = 0; i < length; i++)
	{
		if (text[i] == '"')
			quoted = !quoted;
		if (quoted || strchr(" \t\r\n", text[i]) == NULL)
			buffer_append(compact, text + i, 1);
		if (quoted && text[i] == '\\')
			buffer_append(compact, text + ++i, 1);
	}
}

/* The body as the upstream is to get it: ours first, and the rest as the client wrote it. */
static void
check_upstream_body(const Chat *chat, bool ask_usage)
{
	static const char *const ours[] = {"model", "quality", "stream", "stream_options", NULL};
	static const char *const usage[] = {"include_usage", NULL};
	const char *names[5] = {ours[0], ours[1]};
	json_t *expected = json_deep_copy(chat->body);
	json_t *sent;
	json_t *options;
	size_t given;
	Buffer body;

	buffer_init(&body, SIZE_MAX / 4);
	if (!chat_upstream_body(chat, MODEL, ask_usage, &body))
		CHECK(!"a body for the upstream");
	sent = read_any(body.data, body.length);

	if (!chat->embeds)
		names[2] = ours[2];
	if (chat->stream && ask_usage)
		names[3] = ours[3];
	options = json_deep_copy(json_object_get(expected, "stream_options"));
	given = remove_alike(expected, names);

	/* where the client gave none of ours, its text is all there */
	if (given == 0 && json_object_size(expected) > 0)
	{
		Buffer theirs;
		Buffer whole;

		buffer_init(&theirs, SIZE_MAX / 4);
		buffer_init(&whole, SIZE_MAX / 4);
		append_compact(&theirs, chat->text, chat->length);
		append_compact(&whole, body.data, body.length);
		theirs.data[0] = ',';
		CHECK(whole.length > theirs.length);
		CHECK(strcmp(whole.data + whole.length - theirs.length, theirs.data) == 0);
		buffer_free(&theirs);
		buffer_free(&whole);
	}

	json_object_set_new(expected, "model", json_string(MODEL));
	if (!chat->embeds)
		json_object_set_new(expected, "stream", json_boolean(chat->stream));
	if (chat->stream && ask_usage)
	{
		if (!json_is_object(options))
		{
			json_decref(options);
			options = json_object();
		}
		remove_alike(options, usage);
		json_object_set_new(options, "include_usage", json_true());
		json_object_set(expected, "stream_options", options);
	}
	CHECK(json_equal(sent, expected));

	json_decref(options);
	json_decref(sent);
	json_decref(expected);
	buffer_free(&body);
}

/* ---- what is made of a body ---- */

static void
append_string(Buffer *text, const json_t *value)
{
	if (json_is_string(value))
		buffer_append(text, json_string_value(value), json_string_length(value));
}

/* A message's text is its content, or the texts of the content's parts. */
static void
check_message_text(const json_t *message, size_t limit)
{
	const json_t *content = json_object_get(message, "content");
	Buffer text;
	Buffer expected;

	buffer_init(&text, limit);
	buffer_init(&expected, limit);
	chat_message_text(message, &text);
	append_string(&expected, content);
	for (size_t i = 0; i < json_array_size(content); i++)
		append_string(&expected, json_object_get(json_array_get(content, i), "text"));

	/* JSON is never shorter than what it stands for */
	CHECK(!text.failed && !expected.failed);
	CHECK(text.length == expected.length);
	CHECK(text.length == 0 || memcmp(text.data, expected.data, text.length) == 0);
	buffer_free(&text);
	buffer_free(&expected);
}

/* Of a chat or of embeddings. */
static void
check_way(const Chat *chat)
{
	static const char *const qualities[] = {"cheap", "balanced", "frontier", NULL};

	CHECK(is_one_of(chat->quality, qualities));
	if (chat->model != NULL)
	{
		CHECK(chat->model[0] != '\0');
		CHECK(strlen(chat->model) <= 4 * CHAT_MODEL_MAX);
		CHECK(strlen(chat->model) == json_string_length(json_object_get(chat->body, "model")));
		CHECK(strpbrk(chat->model, "\r\n\t\x01\x1b\x7f") == NULL);
	}
	check_upstream_body(chat, false);
	check_upstream_body(chat, true);
}

static void
check_chat(const Chat *chat, bool stream_default)
{
	const json_t *stream = json_object_get(chat->body, "stream");
	const json_t *temperature = json_object_get(chat->body, "temperature");
	const json_t *messages = json_object_get(chat->body, "messages");

	CHECK(!chat->embeds);
	CHECK(chat->stream == (json_is_boolean(stream) ? json_is_true(stream) : stream_default));
	CHECK(temperature == NULL || json_is_null(temperature) ||
		  (json_number_value(temperature) >= 0 && json_number_value(temperature) <= 2));
	CHECK(json_array_size(messages) > 0);
	for (size_t i = 0; i < json_array_size(messages); i++)
	{
		const json_t *message = json_array_get(messages, i);

		CHECK(json_string_length(json_object_get(message, "role")) > 0);
		check_message_text(message, chat->length);
	}
	check_way(chat);
}

static void
check_embeddings(const Chat *chat)
{
	const json_t *input = json_object_get(chat->body, "input");

	CHECK(chat->embeds);
	CHECK(json_string_length(input) > 0 || json_array_size(input) > 0);
	check_way(chat);
}

/* ---- the same text as an upstream's answer ---- */

static int64_t
expected_count(const json_t *value)
{
	double number = json_is_number(value) ? json_number_value(value) : 0;

	if (number < 1)
		return 0;
	return number < 9e18 ? (int64_t) number : INT64_MAX;
}

static void
check_answer(const char *text, size_t length, const json_t *value)
{
	const json_t *counts = json_object_get(value, "usage");
	Usage usage = {.prompt_tokens = -7, .completion_tokens = -8};
	ChatKind kind;
	bool nothing_else;

	CHECK(chat_is_json(text, length) == (value != NULL));
	CHECK(chat_read_usage(text, length, &usage, &kind) == json_is_object(value));
	CHECK((kind == CHAT_WITHOUT_USAGE) == (counts == NULL));
	nothing_else = json_is_object(counts) && json_object_get(value, "error") == NULL &&
				   json_array_size(json_object_get(value, "choices")) == 0;
	CHECK((kind == CHAT_ALL_USAGE) == nothing_else);
	if (json_is_object(counts))
	{
		CHECK(usage.prompt_tokens == expected_count(json_object_get(counts, "prompt_tokens")));
		CHECK(usage.completion_tokens ==
			  expected_count(json_object_get(counts, "completion_tokens")));
	}
	else
		CHECK(usage.prompt_tokens == -7 && usage.completion_tokens == -8);
}

/* Without its usage a chunk is the same but for that. */
static void
check_strip(const char *text, size_t length, const json_t *object)
{
	static const char *const names[] = {"usage", NULL};
	json_t *expected = json_deep_copy(object);
	json_t *stripped;
	Buffer chunk;

	buffer_init(&chunk, SIZE_MAX / 4);
	if (!chat_strip_usage(text, length, &chunk))
		CHECK(!"a chunk without usage");
	stripped = read_any(chunk.data, chunk.length);
	remove_alike(expected, names);
	CHECK(json_equal(stripped, expected));
	json_decref(stripped);
	json_decref(expected);
	buffer_free(&chunk);
}

/* A member found in the text is the one that a parser gives. */
static void
check_find(const char *text, size_t length, const json_t *object, const char *name)
{
	const json_t *expected = json_object_get(object, name);
	const char *value;
	size_t value_length;
	json_t *found;

	CHECK(members_find(text, length, name, &value, &value_length) == (expected != NULL));
	if (expected == NULL)
		return;
	CHECK(value >= text && value_length <= length &&
		  value - text <= (ptrdiff_t) (length - value_length));
	found = read_any(value, value_length);
	CHECK(json_equal(found, expected));
	json_decref(found);
}

/* ---- changes that leave JSON what it is ---- */

static const char *const names[] = {
	"messages",	  "role",		   "content",		 "text",
	"tool_calls", "function_call", "quality",		 "model",
	"stream",	  "temperature",   "user",			 "stream_options",
	"usage",	  "input",		   "prompt_tokens",	 "completion_tokens",
	"Model",	  "QUALITY",	   "\u017ftream",	 "models",
	"\"{",		  "include_usage", "Stream_Options", "choices",
	"error",
};

static const char *const values[] = {
	"null",
	"true",
	"false",
	"0",
	"2",
	"-0.1",
	"0.1",
	"1e308",
	"9223372036854775807",
	"\"\"",
	"\"user\"",
	"\"cheap\"",
	"\"frontier\"",
	"\"cheap\\u0000\"",
	"\"a\\nb\"",
	"\"\\ud83d\\ude00 \\u007f \\u00e9\"",
	"[]",
	"{}",
	"{\"include_usage\":false}",
	"{\"Include_Usage\":true,\"x\":1}",
	"{\"prompt_tokens\":3,\"completion_tokens\":4}",
	"{\"role\":\"user\",\"content\":\"hello\"}",
	"{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\"}]}",
	"[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\"},{\"text\":\"b\\u0000c\"}]",
	"[{\"role\":\"system\",\"content\":\"be brief\"},{\"role\":\"user\",\"content\":\"x\"}]",
};

/* The next of a sequence of numbers, below limit. */
static size_t
pick(unsigned int *state, size_t limit)
{
	*state = *state * 1103515245u + 12345u;
	return limit > 0 ? (*state >> 8) % limit : 0;
}

static json_t *
pick_value(unsigned int *state)
{
	size_t i = pick(state, sizeof(values) / sizeof(values[0]));

	return json_loads(values[i], JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
}

static bool
is_container(const json_t *value)
{
	return json_is_object(value) || json_is_array(value);
}

/* Changes one thing somewhere in the object or array. */
static void
change(json_t *value, unsigned int *state)
{
	size_t size = json_is_object(value) ? json_object_size(value) : json_array_size(value);
	size_t at = pick(state, size);
	bool deeper = pick(state, 4) > 0;

	if (json_is_object(value))
	{
		void *member = json_object_iter(value);

		while (at-- > 0)
			member = json_object_iter_next(value, member);
		if (deeper && is_container(json_object_iter_value(member)))
			change(json_object_iter_value(member), state);
		else if (member != NULL && pick(state, 4) == 0)
			json_object_del(value, json_object_iter_key(member));
		else if (member != NULL && pick(state, 2) == 0)
			json_object_iter_set_new(value, member, pick_value(state));
		else
			json_object_set_new(value, names[pick(state, sizeof(names) / sizeof(names[0]))],
								pick_value(state));
	}
	else if (deeper && is_container(json_array_get(value, at)))
		change(json_array_get(value, at), state);
	else if (pick(state, 3) == 0)
		json_array_remove(value, at);
	else
		json_array_insert_new(value, at, pick_value(state));
}

/* libFuzzer's own, which changes bytes. */
extern size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t limit) __attribute__((weak));
extern size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t limit,
									  unsigned int seed);

/*
 * libFuzzer does not see into jansson, and bytes changed at random are rarely JSON. So every
 * other change is made to what the text means.
 */
size_t
LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t limit, unsigned int seed)
{
	static const size_t styles[] = {JSON_COMPACT, JSON_INDENT(1), JSON_ENSURE_ASCII};
	unsigned int state = seed;
	json_t *value;
	size_t written = 0;

	if (length == 0 || pick(&state, 2) == 0)
		return LLVMFuzzerMutate(bytes, length, limit);
	value = json_loadb((const char *) bytes + 1, length - 1, JSON_ALLOW_NUL, NULL);
	if (!json_is_object(value))
	{
		json_decref(value);
		value = json_loads("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 0, NULL);
	}
	do
		change(value, &state);
	while (pick(&state, 2) == 0);

	bytes[0] = '0' + (uint8_t) pick(&state, 2);
	written = json_dumpb(value, (char *) bytes + 1, limit - 1, styles[pick(&state, 3)]);
	json_decref(value);
	return written > 0 && written < limit ? written + 1 : LLVMFuzzerMutate(bytes, length, limit);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	const char *text = (const char *) bytes + 1;
	bool stream_default;
	Chat chat;
	json_t *value;
	Refusal refusal;

	if (length == 0)
		return 0;
	stream_default = bytes[0] & 1;
	length--;
	value = read_any(text, length);

	refusal = chat_parse(text, length, stream_default, &chat);
	CHECK((refusal == REFUSAL_INVALID_JSON) == !json_is_object(value));
	CHECK((refusal == REFUSAL_MISSING_MESSAGES) ==
		  (json_is_object(value) && json_array_size(json_object_get(value, "messages")) == 0));
	if (refusal == REFUSAL_NONE)
	{
		check_chat(&chat, stream_default);
		chat_free(&chat);
	}
	else
		CHECK(refusal_status(refusal) == 400);
	CHECK(chat.body == NULL);

	refusal = chat_parse_embeddings(text, length, &chat);
	CHECK((refusal == REFUSAL_INVALID_JSON) == !json_is_object(value));
	if (refusal == REFUSAL_NONE)
	{
		check_embeddings(&chat);
		chat_free(&chat);
	}
	else
		CHECK(refusal_status(refusal) == 400);
	CHECK(chat.body == NULL);

	check_answer(text, length, value);
	if (json_is_object(value))
	{
		check_strip(text, length, value);
		check_find(text, length, value, "usage");
		check_find(text, length, value, "stream");
		check_find(text, length, value, "messages");
	}
	json_decref(value);
	return 0;
}
