/*
 * chat.c
 *	  What the gateway reads in, and changes in, bodies of OpenAI's formats.
 */
#include "chat.h"

#include <string.h>

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

/* A name travels in a header and to the database: no control characters, and no endless one. */
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
	return characters >= 1 && characters <= CHAT_MODEL_MAX;
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
	chat->stream = stream != NULL ? json_is_true(stream) : stream_default;
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

Refusal
chat_parse(const char *text, size_t length, bool stream_default, Chat *chat)
{
	Refusal refusal;

	*chat = (Chat){.body = json_loadb(text, length, JSON_ALLOW_NUL, NULL)};
	refusal = json_is_object(chat->body) ? check_chat(chat, stream_default) : REFUSAL_INVALID_JSON;
	if (refusal != REFUSAL_NONE)
		chat_free(chat);
	return refusal;
}

Refusal
chat_parse_embeddings(const char *text, size_t length, Chat *chat)
{
	Refusal refusal = REFUSAL_INVALID_JSON;

	*chat = (Chat){.body = json_loadb(text, length, JSON_ALLOW_NUL, NULL), .embeds = true};
	if (json_is_object(chat->body))
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

char *
chat_upstream_body(const Chat *chat, const char *model)
{
	json_t *body = json_copy(chat->body);
	char *text = NULL;

	if (json_object_set_new(body, "model", json_string(model)) == 0 &&
		(chat->embeds || json_object_set_new(body, "stream", json_boolean(chat->stream)) == 0))
	{
		json_object_del(body, "quality");
		text = json_dumps(body, JSON_COMPACT);
	}
	json_decref(body);
	return text;
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

bool
chat_read_usage(const char *text, size_t length, Usage *usage)
{
	json_t *answer = json_loadb(text, length, JSON_ALLOW_NUL, NULL);
	const json_t *counts = json_object_get(answer, "usage");
	bool is_object = json_is_object(answer);

	if (json_is_object(counts))
	{
		usage->prompt_tokens = json_integer_value(json_object_get(counts, "prompt_tokens"));
		usage->completion_tokens = json_integer_value(json_object_get(counts, "completion_tokens"));
	}
	json_decref(answer);
	return is_object;
}

bool
chat_is_json(const char *text, size_t length)
{
	json_t *value = json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
	bool valid = value != NULL;

	json_decref(value);
	return valid;
}
