/*
 * echo.c
 *	  builtin:echo, the upstream that needs no account: it says what it heard.
 *
 * The formats are those of OpenAI's "chat completion" and "chat completion
 * chunk" objects.
 */
#include "echo.h"

#include <poll.h>
#include <string.h>
#include <time.h>

#define PAUSE 20	  /* ms between two pieces of a streamed answer */
#define PIECES_MAX 50 /* so that the pauses come to one second at most */
#define WHITE " \t\n\r\f\v"

/* Words, separated by white space. */
static int64_t
count_words(const Buffer *text)
{
	int64_t words = 0;
	bool inside = false;

	for (size_t i = 0; i < text->length; i++)
	{
		bool white = memchr(WHITE, text->data[i], sizeof(WHITE) - 1) != NULL;

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

/* Takes over choice and, unless NULL, usage. */
static char *
answer_text(const char *object, const char *id, const char *model, json_t *choice, json_t *usage)
{
	json_t *answer = json_pack("{s:s+,s:s,s:I,s:s,s:[o],s:o*}", "id", "chatcmpl-", id, "object",
							   object, "created", (json_int_t) time(NULL), "model", model,
							   "choices", choice, "usage", usage);
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

/* Forwards one chunk and pauses; false when the client has gone. Takes over delta and usage. */
static bool
forward_chunk(UpstreamCall *call, const char *model, const char *id, json_t *delta,
			  const char *finish_reason, json_t *usage, int pause)
{
	struct pollfd client = {.fd = call->client, .events = POLLIN};
	json_t *choice =
		json_pack("{s:i,s:o,s:s?}", "index", 0, "delta", delta, "finish_reason", finish_reason);
	char *text = answer_text("chat.completion.chunk", id, model, choice, usage);
	Buffer event;
	bool forwarded;

	buffer_init(&event, UPSTREAM_BODY_MAX);
	buffer_printf(&event, "data: %s\n\n", text != NULL ? text : "{}");
	free(text);
	forwarded = !event.failed && call->forward(call->context, event.data, event.length);
	buffer_free(&event);
	return forwarded && poll(&client, 1, pause) <= 0;
}

static UpstreamResult
answer_in_pieces(UpstreamCall *call, const Buffer *heard, const char *model, const char *id)
{
	static const char done[] = "data: [DONE]\n\n";
	int64_t step = (call->usage.completion_tokens + PIECES_MAX - 1) / PIECES_MAX;
	size_t at = 0;

	if (!forward_chunk(call, model, id, json_pack("{s:s,s:s}", "role", "assistant", "content", ""),
					   NULL, NULL, 0))
		return UPSTREAM_CLIENT_GONE;

	while (at < heard->length)
	{
		const char *rest = heard->data + at;
		size_t length = words_length(rest, heard->length - at, step);

		/* White space behind the last word goes with it. */
		if (strspn(rest + length, WHITE) == heard->length - at - length)
			length = heard->length - at;
		if (!forward_chunk(call, model, id, json_pack("{s:s%}", "content", rest, length), NULL,
						   NULL, PAUSE))
			return UPSTREAM_CLIENT_GONE;
		at += length;
	}

	if (!forward_chunk(call, model, id, json_object(), "stop", usage_json(&call->usage), 0) ||
		!call->forward(call->context, done, sizeof(done) - 1))
		return UPSTREAM_CLIENT_GONE;
	return UPSTREAM_ANSWERED;
}

UpstreamResult
echo_call(UpstreamCall *call, const Chat *chat, const char *model, const char *id)
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
		call->usage.prompt_tokens += count_words(&text);
		if (strcmp(json_string_value(json_object_get(message, "role")), "user") == 0)
		{
			buffer_free(&heard);
			heard = text;
		}
		else
			buffer_free(&text);
	}
	call->usage.completion_tokens = count_words(&heard);

	if (chat->stream)
		result = answer_in_pieces(call, &heard, model, id);
	else
		result = answer_at_once(call, &heard, model, id);
	buffer_free(&heard);
	return result;
}
