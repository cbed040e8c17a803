/*
 * chat.c
 *	  What the gateway reads in, and changes in, bodies of OpenAI's formats.
 */
#include "chat.h"
#include "credentials.h"
#include "members.h"

#include <string.h>

/*
 * Reads JSON, which is passed on as it is. Integers that need more than 64 bits are fine,
 * but a number beyond a double's range is not JSON to us (RFC 8259, 6, allows that).
 * jansson overlooks a NUL behind a number.
 */
static json_t *
load(const char *text, size_t length, size_t flags)
{
	if (length == 0 || memchr(text, '\0', length) != NULL)
		return NULL;
	return json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL | flags, NULL);
}

json_t *
chat_member(const json_t *object, const char *name)
{
	json_t *value = json_object_get(object, name);

	return json_is_null(value) ? NULL : value;
}

/* Each message has a role and content; content may be missing beside a call of a tool. */
static Refusal
check_messages(const json_t *messages)
{
	size_t index;
	json_t *message;

	if (!json_is_array(messages) || json_array_size(messages) == 0)
		return REFUSAL_MISSING_MESSAGES;

	json_array_foreach(messages, index, message)
	{
		const json_t *content = chat_member(message, "content");

		if (json_string_length(chat_member(message, "role")) == 0)
			return REFUSAL_INVALID_MESSAGE_FORMAT;
		if (content == NULL)
		{
			if (chat_member(message, "tool_calls") == NULL &&
				chat_member(message, "function_call") == NULL)
				return REFUSAL_INVALID_MESSAGE_FORMAT;
		}
		else if (!json_is_string(content) && !json_is_array(content))
			return REFUSAL_INVALID_MESSAGE_FORMAT;
	}
	return REFUSAL_NONE;
}

/*
 * A name travels in a header, to logs and to the database: no control characters, no endless
 * one, and no key by mistake.
 */
bool
chat_is_model_name(const json_t *value)
{
	const char *name = json_string_value(value);
	size_t length = json_string_length(value);
	int characters = 0;

	for (size_t i = 0; i < length; i++)
	{
		if ((unsigned char) name[i] < ' ' || name[i] == 0x7f)
			return false;
		if (((unsigned char) name[i] & 0xc0) != 0x80) /* not a byte that continues a character */
			characters++;
	}
	return characters >= 1 && characters <= CHAT_MODEL_MAX && !credentials_within(name);
}

static bool
is_quality(const json_t *value)
{
	static const char *const names[] = {"cheap", "balanced", "frontier"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
	{
		/* by length as well: a JSON string may hold NUL */
		if (json_string_length(value) == strlen(names[i]) &&
			strcmp(json_string_value(value), names[i]) == 0)
			return true;
	}
	return false;
}

/* Checks what decides the way that a request takes. */
static Refusal
check_way(Chat *chat)
{
	const json_t *quality = chat_member(chat->body, "quality");
	const json_t *model = chat_member(chat->body, "model");

	if (quality != NULL && !is_quality(quality))
		return REFUSAL_INVALID_QUALITY;
	if (model != NULL && !chat_is_model_name(model))
		return REFUSAL_INVALID_MODEL;
	chat->quality = quality != NULL ? json_string_value(quality) : "balanced";
	chat->model = json_string_value(model);
	return REFUSAL_NONE;
}

static Refusal
check_chat(Chat *chat, bool stream_default)
{
	const json_t *temperature = chat_member(chat->body, "temperature");
	const json_t *stream = chat_member(chat->body, "stream");
	const json_t *options = chat_member(chat->body, "stream_options");
	const json_t *usage = chat_member(options, "include_usage");
	Refusal refusal = check_messages(chat_member(chat->body, "messages"));

	if (refusal == REFUSAL_NONE)
		refusal = check_way(chat);
	if (refusal != REFUSAL_NONE)
		return refusal;
	if (temperature != NULL &&
		!(json_is_number(temperature) && json_number_value(temperature) >= 0 &&
		  json_number_value(temperature) <= 2))
		return REFUSAL_INVALID_TEMPERATURE;
	if (stream != NULL && !json_is_boolean(stream))
		return REFUSAL_INVALID_STREAM;
	if ((options != NULL && !json_is_object(options)) || (usage != NULL && !json_is_boolean(usage)))
		return REFUSAL_INVALID_STREAM_OPTIONS;
	chat->stream = stream != NULL ? json_is_true(stream) : stream_default;
	chat->wants_usage = json_is_true(usage);
	return REFUSAL_NONE;
}

static bool
is_tokens(const json_t *value)
{
	size_t index;
	json_t *token;

	json_array_foreach(value, index, token)
	{
		if (!json_is_number(token))
			return false;
	}
	return json_array_size(value) > 0;
}

/* A text, a list of them, or either as tokens instead of text. */
static Refusal
check_input(const json_t *input)
{
	size_t index;
	json_t *text;

	if (json_string_length(input) == 0 && json_array_size(input) == 0)
		return REFUSAL_MISSING_INPUT;
	if (is_tokens(input))
		return REFUSAL_NONE;
	json_array_foreach(input, index, text)
	{
		if (!json_is_string(text) && !is_tokens(text))
			return REFUSAL_INVALID_INPUT;
	}
	return REFUSAL_NONE;
}

static Refusal
parse(const char *text, size_t length, Chat *chat)
{
	*chat = (Chat){.text = text, .length = length};
	chat->body = load(text, length, 0);
	return json_is_object(chat->body) ? REFUSAL_NONE : REFUSAL_INVALID_JSON;
}

Refusal
chat_parse(const char *text, size_t length, bool stream_default, Chat *chat)
{
	Refusal refusal = parse(text, length, chat);

	if (refusal == REFUSAL_NONE)
		refusal = check_chat(chat, stream_default);
	if (refusal != REFUSAL_NONE)
		chat_free(chat);
	return refusal;
}

Refusal
chat_parse_embeddings(const char *text, size_t length, Chat *chat)
{
	Refusal refusal = parse(text, length, chat);

	chat->embeds = true;
	if (refusal == REFUSAL_NONE)
		refusal = check_input(chat_member(chat->body, "input"));
	if (refusal == REFUSAL_NONE)
		refusal = check_way(chat);
	if (refusal != REFUSAL_NONE)
		chat_free(chat);
	return refusal;
}

void
chat_free(Chat *chat)
{
	json_decref(chat->body);
	chat->body = NULL;
}

/* Appends the stream_options that ask for usage, with what the client has put into them. */
static bool
add_stream_options(const Chat *chat, Buffer *added)
{
	static const char *const names[] = {"include_usage", NULL};
	const char *options;
	size_t length;

	buffer_append_string(added, ",\"stream_options\":");
	if (chat_member(chat->body, "stream_options") == NULL)
		return buffer_append_string(added, "{\"include_usage\":true}");
	return members_find(chat->text, chat->length, "stream_options", &options, &length) &&
		   members_replace(options, length, names, "\"include_usage\":true", added);
}

bool
chat_upstream_body(const Chat *chat, const char *model, bool ask_usage, Buffer *body)
{
	static const char *const names[] = {"stream_options", "stream", "model", "quality", NULL};
	bool asks = chat->stream && ask_usage;
	int kept = chat->embeds ? 2 : asks ? 0 : 1; /* of the names: those that stay the client's */
	Buffer added;
	bool sound;

	buffer_init(&added, SIZE_MAX / 2);
	buffer_append_string(&added, "\"model\":");
	buffer_append_json(&added, model);
	if (!chat->embeds)
		buffer_printf(&added, ",\"stream\":%s", chat->stream ? "true" : "false");
	sound = (!asks || add_stream_options(chat, &added)) && !added.failed &&
			members_replace(chat->text, chat->length, names + kept, added.data, body);
	buffer_free(&added);
	return sound;
}

void
chat_message_text(const json_t *message, Buffer *text)
{
	const json_t *content = json_object_get(message, "content");
	size_t index;
	json_t *part;

	if (json_is_string(content))
		buffer_append(text, json_string_value(content), json_string_length(content));

	json_array_foreach(content, index, part)
	{
		const json_t *value = json_object_get(part, "text");

		if (json_is_string(value))
			buffer_append(text, json_string_value(value), json_string_length(value));
	}
}

/* The database bounds what is absurd; here it only has to be a number. */
static int64_t
count(const json_t *value)
{
	double number = json_number_value(value);

	return number <= 0 ? 0 : number < 9e18 ? (int64_t) number : INT64_MAX;
}

bool
chat_read_usage(const char *text, size_t length, Usage *usage, ChatKind *kind)
{
	json_t *answer = load(text, length, 0);
	const json_t *counts = json_object_get(answer, "usage");
	bool is_object = json_is_object(answer);

	*kind = counts != NULL ? CHAT_WITH_USAGE : CHAT_WITHOUT_USAGE;
	if (json_is_object(counts))
	{
		usage->prompt_tokens = count(json_object_get(counts, "prompt_tokens"));
		usage->completion_tokens = count(json_object_get(counts, "completion_tokens"));
		if (json_array_size(json_object_get(answer, "choices")) == 0 &&
			json_object_get(answer, "error") == NULL)
			*kind = CHAT_ALL_USAGE;
	}
	json_decref(answer);
	return is_object;
}

bool
chat_strip_usage(const char *text, size_t length, Buffer *chunk)
{
	static const char *const names[] = {"usage", NULL};

	return members_replace(text, length, names, "", chunk);
}

bool
chat_is_json(const char *text, size_t length)
{
	json_t *value = load(text, length, JSON_DECODE_ANY);
	bool valid = value != NULL;

	json_decref(value);
	return valid;
}
