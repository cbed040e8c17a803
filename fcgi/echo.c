/*
 * echo.c
 *	  builtin:echo, the upstream that needs no account: it says what it heard.
 *
 * The formats are those of OpenAI's "chat completion", "chat completion chunk"
 * and "embedding" objects.
 */
#include "echo.h"
#include "embedding.h"
#include "task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAUSE 20	  /* ms between two pieces of a streamed answer */
#define PIECES_MAX 50 /* so that the pauses come to one second at most */
/* Numbers that the vectors of one answer may have together; texts that it may be for (OpenAI's) */
#define EMBEDDED_MAX (512 * 1024)
#define TEXTS_MAX 2048
/* Numbers that take milliseconds to make and to print: see task_call() */
#define EMBEDDED_MANY (16 * 1024)
#define WHITE " \t\n\r\f\v"

/* Words, separated by white space. */
static int64_t
count_words(const char *text, size_t length)
{
	int64_t words = 0;
	bool inside = false;

	for (size_t i = 0; i < length; i++)
	{
		bool white = memchr(WHITE, text[i], sizeof(WHITE) - 1) != NULL;

		words += !white && !inside;
		inside = !white;
	}
	return words;
}

/* The length of text up to the end of its first words. */
static size_t
words_length(const char *text, size_t length, int64_t words)
{
	size_t end = 0;

	while (words-- > 0)
	{
		while (end < length && memchr(WHITE, text[end], sizeof(WHITE) - 1) != NULL)
			end++;
		while (end < length && memchr(WHITE, text[end], sizeof(WHITE) - 1) == NULL)
			end++;
	}
	return end;
}

static json_t *
usage_json(const Usage *usage)
{
	return json_pack("{s:I,s:I,s:I}", "prompt_tokens", (json_int_t) usage->prompt_tokens,
					 "completion_tokens", (json_int_t) usage->completion_tokens, "total_tokens",
					 (json_int_t) (usage->prompt_tokens + usage->completion_tokens));
}

/* Takes over choice and usage; NULL: there is none. */
static char *
answer_text(const char *object, const char *id, const char *model, json_t *choice, json_t *usage)
{
	json_t *choices = choice != NULL ? json_pack("[o]", choice) : json_array();
	json_t *answer =
		json_pack("{s:s+,s:s,s:I,s:s,s:o,s:o*}", "id", "chatcmpl-", id, "object", object, "created",
				  (json_int_t) time(NULL), "model", model, "choices", choices, "usage", usage);
	char *text = json_dumps(answer, JSON_COMPACT);

	json_decref(answer);
	return text;
}

static UpstreamResult
answer_at_once(UpstreamCall *call, const Buffer *heard, const char *model, const char *id)
{
	json_t *choice =
		json_pack("{s:i,s:{s:s,s:s%},s:s}", "index", 0, "message", "role", "assistant", "content",
				  heard->length > 0 ? heard->data : "", heard->length, "finish_reason", "stop");
	char *text = answer_text("chat.completion", id, model, choice, usage_json(&call->usage));

	call->status = 200;
	if (text != NULL)
		buffer_append_string(&call->answer, text);
	free(text);
	return text != NULL && !call->answer.failed ? UPSTREAM_ANSWERED : UPSTREAM_FAILED;
}

/*
 * Forwards one chunk and pauses; false when the client has gone. Takes over delta; NULL:
 * the chunk is that of the usage.
 */
static bool
forward_chunk(UpstreamCall *call, const char *model, const char *id, json_t *delta,
			  const char *finish_reason, int pause)
{
	struct pollfd client = {.fd = call->client, .events = POLLIN};
	json_t *choice = NULL;
	json_t *usage = NULL;
	char *text;
	Buffer event;
	bool forwarded;

	if (delta != NULL)
		choice =
			json_pack("{s:i,s:o,s:s?}", "index", 0, "delta", delta, "finish_reason", finish_reason);
	if (!call->hides_usage)
		usage = delta != NULL ? json_null() : usage_json(&call->usage);
	text = answer_text("chat.completion.chunk", id, model, choice, usage);
	buffer_init(&event, UPSTREAM_BODY_MAX);
	buffer_printf(&event, "data: %s\n\n", text != NULL ? text : "{}");
	free(text);
	forwarded = !event.failed && call->forward(call->context, event.data, event.length);
	buffer_free(&event);
	return forwarded && task_poll(&client, 1, pause) <= 0;
}

static UpstreamResult
answer_in_pieces(UpstreamCall *call, const Buffer *heard, const char *model, const char *id)
{
	static const char done[] = "data: [DONE]\n\n";
	int64_t step = (call->usage.completion_tokens + PIECES_MAX - 1) / PIECES_MAX;
	size_t at = 0;

	if (!forward_chunk(call, model, id, json_pack("{s:s,s:s}", "role", "assistant", "content", ""),
					   NULL, 0))
		return UPSTREAM_CLIENT_GONE;

	while (at < heard->length)
	{
		const char *rest = heard->data + at;
		size_t length = words_length(rest, heard->length - at, step);

		/* White space behind the last word goes with it. */
		if (strspn(rest + length, WHITE) == heard->length - at - length)
			length = heard->length - at;
		if (!forward_chunk(call, model, id, json_pack("{s:s%}", "content", rest, length), NULL,
						   PAUSE))
			return UPSTREAM_CLIENT_GONE;
		at += length;
	}

	if (!forward_chunk(call, model, id, json_object(), "stop", 0) ||
		(!call->hides_usage && !forward_chunk(call, model, id, NULL, NULL, 0)) ||
		!call->forward(call->context, done, sizeof(done) - 1))
		return UPSTREAM_CLIENT_GONE;
	return UPSTREAM_ANSWERED;
}

static UpstreamResult
answer_chat(UpstreamCall *call, const Chat *chat, const char *model, const char *id)
{
	Buffer heard; /* the last message of the user */
	UpstreamResult result;
	size_t index;
	json_t *message;

	buffer_init(&heard, UPSTREAM_BODY_MAX);
	json_array_foreach(json_object_get(chat->body, "messages"), index, message)
	{
		Buffer text;

		buffer_init(&text, UPSTREAM_BODY_MAX);
		chat_message_text(message, &text);
		call->usage.prompt_tokens += count_words(text.data, text.length);
		if (strcmp(json_string_value(json_object_get(message, "role")), "user") == 0)
		{
			buffer_free(&heard);
			heard = text;
		}
		else
			buffer_free(&text);
	}
	call->usage.completion_tokens = count_words(heard.data, heard.length);

	if (chat->stream)
		result = answer_in_pieces(call, &heard, model, id);
	else
		result = answer_at_once(call, &heard, model, id);
	buffer_free(&heard);
	return result;
}

/* ---- embeddings ---- */

/* Makes the vector of a text or of tokens; gives the number of its words. */
static int64_t
embed(const json_t *input, float *vector, int dimensions)
{
	int64_t words = (int64_t) json_array_size(input);
	size_t index;
	json_t *token;

	embedding_begin(vector, dimensions);
	if (json_is_string(input))
	{
		const char *text = json_string_value(input);
		size_t length = json_string_length(input);

		embedding_add_words(vector, dimensions, text, length);
		words = count_words(text, length);
	}
	json_array_foreach(input, index, token)
	{
		char digits[32];
		int length = snprintf(digits, sizeof(digits), "%.17g", json_number_value(token));

		embedding_add(vector, dimensions, digits, (size_t) length);
	}
	embedding_finish(vector, dimensions);
	return words;
}

static bool
is_string(const json_t *value, const char *string)
{
	return json_is_string(value) && strcmp(json_string_value(value), string) == 0;
}

static UpstreamResult
refuse_embeddings(UpstreamCall *call, const char *message)
{
	call->status = 400;
	buffer_printf(&call->answer,
				  "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\"}}", message);
	return call->answer.failed ? UPSTREAM_FAILED : UPSTREAM_ANSWERED;
}

/* A request for embeddings that is in order. */
typedef struct Embedding
{
	UpstreamCall *call;
	const json_t *input;
	const char *model;
	bool many; /* texts, of which there are count */
	size_t count;
	int dimensions;
	bool base64;
} Embedding;

static void
embed_all(void *argument)
{
	const Embedding *embedding = argument;
	UpstreamCall *call = embedding->call;
	const json_t *input = embedding->input;
	float vector[EMBEDDING_DIMENSIONS_MAX];
	json_t *end;
	char *text;

	buffer_append_string(&call->answer, "{\"object\":\"list\",\"data\":[");
	for (size_t i = 0; i < embedding->count; i++)
	{
		call->usage.prompt_tokens += embed(embedding->many ? json_array_get(input, i) : input,
										   vector, embedding->dimensions);
		buffer_printf(&call->answer,
					  "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i == 0 ? "" : ",",
					  i);
		embedding_print(vector, embedding->dimensions, embedding->base64, &call->answer);
		buffer_append_string(&call->answer, "}");
	}
	end = json_pack("{s:s,s:{s:I,s:I}}", "model", embedding->model, "usage", "prompt_tokens",
					(json_int_t) call->usage.prompt_tokens, "total_tokens",
					(json_int_t) call->usage.prompt_tokens);
	text = json_dumps(end, JSON_COMPACT);
	json_decref(end);
	buffer_printf(&call->answer, "],%s", text != NULL ? text + 1 : "}"); /* without its brace */
	free(text);
	call->status = 200;
}

static UpstreamResult
answer_embeddings(UpstreamCall *call, const Chat *chat, const char *model)
{
	const json_t *input = chat_member(chat->body, "input");
	const json_t *asked = chat_member(chat->body, "dimensions");
	const json_t *format = chat_member(chat->body, "encoding_format");
	double dimensions = asked == NULL ? EMBEDDING_DIMENSIONS : json_number_value(asked);
	bool many = json_is_array(input) && !json_is_number(json_array_get(input, 0));
	Embedding embedding = {
		.call = call,
		.input = input,
		.model = model,
		.many = many,
		.count = many ? json_array_size(input) : 1,
		.base64 = is_string(format, "base64"),
	};

	if (!(dimensions >= 1 && dimensions <= EMBEDDING_DIMENSIONS_MAX))
		return refuse_embeddings(call, "dimensions must be from 1 to 2048");
	if (format != NULL && !embedding.base64 && !is_string(format, "float"))
		return refuse_embeddings(call, "encoding_format must be float or base64");
	if (embedding.count > TEXTS_MAX || (double) embedding.count * dimensions > EMBEDDED_MAX)
		return refuse_embeddings(call, "too many embeddings at once");

	embedding.dimensions = (int) dimensions;
	if (embedding.count * (size_t) embedding.dimensions >= EMBEDDED_MANY)
		task_call(embed_all, &embedding);
	else
		embed_all(&embedding);
	return call->answer.failed ? UPSTREAM_FAILED : UPSTREAM_ANSWERED;
}

UpstreamResult
echo_call(UpstreamCall *call, const Chat *chat, const char *model, const char *id)
{
	if (chat->embeds)
		return answer_embeddings(call, chat, model);
	return answer_chat(call, chat, model, id);
}
