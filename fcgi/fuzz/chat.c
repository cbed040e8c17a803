/*
 * chat.c
 *	  Fuzz target: a request's body, and what the upstream gets of it.
 *
 * Input: "1" or "0", whether a body that does not say so asks for a stream; then the body.
 * The same text is also read as an upstream's answer.
 */
#include "fuzz.h"

#include "../chat.h"
#include "../syntax.h"

#include <stdbool.h>

#define MODEL "a model, \"quoted\""

/* Of any value, with NULs in strings, and integers of any length. */
static json_t *
read_any(const char *text, size_t length)
{
	if (memchr(text, '\0', length) != NULL)
		return NULL; /* jansson overlooks one behind a number */
	return json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL,
					  NULL);
}

static bool
is_one_of(const char *value, const char *const names[], size_t count)
{
	for (size_t i = 0; i < count; i++)
	{
		if (strcmp(value, names[i]) == 0)
			return true;
	}
	return false;
}

/* Whether a reader that disregards case would take the one for the other. */
static bool
is_alike(const char *key, const char *name)
{
	char plain[64] = "";

	for (size_t i = 0; *key != '\0' && i < sizeof(plain) - 1; i++)
	{
		bool long_s = strncmp(key, "\xc5\xbf", 2) == 0;

		plain[i] = long_s ? 's' : *key;
		key += long_s ? 2 : 1;
	}
	return *key == '\0' && strcasecmp(plain, name) == 0;
}

/* Removes all members that are alike to the name. */
static void
remove_alike(json_t *object, const char *name)
{
	const char *key;
	json_t *value;
	void *next;

	json_object_foreach_safe(object, next, key, value)
	{
		if (is_alike(key, name))
			json_object_del(object, key);
	}
}

/*
 * The body as the upstream is to get it: ours replaced, the rest as the client sent it.
 * Ours come first: so one of the client's that was left would be what is read here.
 */
static void
check_upstream_body(const Chat *chat, bool ask_usage, size_t limit)
{
	json_t *before = json_deep_copy(chat->body);
	json_t *expected = json_deep_copy(chat->body);
	json_t *options = json_deep_copy(json_object_get(expected, "stream_options"));
	json_t *sent;
	Buffer text;

	buffer_init(&text, limit + 1000);
	CHECK(chat_upstream_body(chat, MODEL, ask_usage, &text));
	CHECK(json_equal(chat->body, before));
	sent = read_any(text.data, text.length);
	CHECK(sent != NULL);

	remove_alike(expected, "model");
	remove_alike(expected, "quality");
	remove_alike(expected, "stream");
	json_object_set_new(expected, "model", json_string(MODEL));
	json_object_set_new(expected, "stream", json_boolean(chat->stream));
	if (chat->stream && ask_usage)
	{
		if (!json_is_object(options))
		{
			json_decref(options);
			options = json_object();
		}
		remove_alike(options, "include_usage");
		json_object_set_new(options, "include_usage", json_true());
		remove_alike(expected, "stream_options");
		json_object_set(expected, "stream_options", options);
	}
	CHECK(json_equal(sent, expected));

	buffer_free(&text);
	json_decref(options);
	json_decref(sent);
	json_decref(expected);
	json_decref(before);
}

static size_t
append_string(Buffer *text, const json_t *value)
{
	if (json_is_string(value))
		buffer_append(text, json_string_value(value), json_string_length(value));
	return text->length;
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

static void
check_accepted(const Chat *chat, bool stream_default, size_t length)
{
	static const char *const qualities[] = {"cheap", "balanced", "frontier"};
	const json_t *stream = json_object_get(chat->body, "stream");
	const json_t *temperature = json_object_get(chat->body, "temperature");
	const json_t *messages = json_object_get(chat->body, "messages");

	CHECK(is_one_of(chat->quality, qualities, 3));
	CHECK(chat->stream == (json_is_boolean(stream) ? json_is_true(stream) : stream_default));
	CHECK(temperature == NULL || json_is_null(temperature) ||
		  (json_number_value(temperature) >= 0 && json_number_value(temperature) <= 2));
	if (chat->model != NULL)
	{
		CHECK(chat->model[0] != '\0');
		CHECK(strlen(chat->model) <= 4 * CHAT_MODEL_MAX);
		CHECK(strlen(chat->model) == json_string_length(json_object_get(chat->body, "model")));
		CHECK(strpbrk(chat->model, "\r\n\t\x01\x1b\x7f") == NULL);
	}
	CHECK(json_array_size(messages) > 0);
	for (size_t i = 0; i < json_array_size(messages); i++)
	{
		const json_t *message = json_array_get(messages, i);

		CHECK(json_string_length(json_object_get(message, "role")) > 0);
		check_message_text(message, length);
	}
	check_upstream_body(chat, true, length);
	check_upstream_body(chat, false, length);
}

/* A number of tokens as it is to be understood. */
static int64_t
expected_count(const json_t *counts, const char *name)
{
	double number = json_number_value(json_object_get(counts, name));

	return number <= 0 ? 0 : number < 9e18 ? (int64_t) number : INT64_MAX;
}

/* A chunk without its usage is what it was in all else. */
static void
check_strip(const char *text, size_t length, const json_t *value)
{
	json_t *expected = json_deep_copy(value);
	json_t *stripped;
	Buffer chunk;

	buffer_init(&chunk, length);
	CHECK(chat_strip_usage(text, length, &chunk));
	stripped = read_any(chunk.data, chunk.length);
	remove_alike(expected, "usage");
	CHECK(json_equal(stripped, expected));
	json_decref(stripped);
	json_decref(expected);
	buffer_free(&chunk);
}

/* The same text as an upstream's answer. */
static void
check_answer(const char *text, size_t length, const json_t *value)
{
	const json_t *counts = json_object_get(value, "usage");
	Usage usage = {.prompt_tokens = -7, .completion_tokens = -8};
	ChatKind kind;

	CHECK(syntax_is_json(text, length) == (value != NULL));
	CHECK(chat_read_usage(text, length, &usage, &kind) == json_is_object(value));
	CHECK((kind == CHAT_WITHOUT_USAGE) == (counts == NULL));
	CHECK(kind != CHAT_ALL_USAGE || json_is_object(counts));
	if (json_is_object(counts))
	{
		CHECK(usage.prompt_tokens == expected_count(counts, "prompt_tokens"));
		CHECK(usage.completion_tokens == expected_count(counts, "completion_tokens"));
	}
	else
		CHECK(usage.prompt_tokens == -7 && usage.completion_tokens == -8);
	if (json_is_object(value))
		check_strip(text, length, value);
}

/* ---- changes that leave JSON what it is ---- */

static const char *const names[] = {
	"messages",	  "role",		   "content",		"text",
	"tool_calls", "function_call", "quality",		"model",
	"stream",	  "temperature",   "user",			"stream_options",
	"usage",	  "input",		   "prompt_tokens", "completion_tokens",
	"Model",	  "\xc5\xbfTREAM", "include_usage"};

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
	"18446744073709551615",
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

	return read_any(values[i], strlen(values[i]));
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
	unsigned int state = seed;
	json_t *value;
	size_t written = 0;

	if (length == 0 || pick(&state, 2) == 0)
		return LLVMFuzzerMutate(bytes, length, limit);
	value = read_any((const char *) bytes + 1, length - 1);
	if (!json_is_object(value))
	{
		json_decref(value);
		value = json_loads("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 0, NULL);
	}
	do
		change(value, &state);
	while (pick(&state, 2) == 0);

	bytes[0] = '0' + (uint8_t) pick(&state, 2);
	written = json_dumpb(value, (char *) bytes + 1, limit - 1, JSON_COMPACT);
	json_decref(value);
	return written > 0 && written < limit ? written + 1 : LLVMFuzzerMutate(bytes, length, limit);
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	const char *text = (const char *) bytes + 1;
	Chat chat;
	bool stream_default;
	json_t *value;
	Refusal refusal;

	if (length == 0)
		return 0;
	stream_default = bytes[0] & 1;
	length--;
	value = read_any(text, length);

	refusal = chat_parse(text, length, stream_default, &chat);
	CHECK((refusal == REFUSAL_INVALID_JSON) == !json_is_object(value));
	if (refusal == REFUSAL_NONE)
	{
		check_accepted(&chat, stream_default, length);
		chat_free(&chat);
	}
	else
		CHECK(refusal_status(refusal) == 400);
	CHECK(chat.body == NULL);
	if (json_is_object(value) && json_array_size(json_object_get(value, "messages")) == 0)
		CHECK(refusal == REFUSAL_MISSING_MESSAGES);
	check_answer(text, length, value);

	json_decref(value);
	return 0;
}
