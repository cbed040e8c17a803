/*
 * chat.h
 *	  What the gateway reads in, and changes in, bodies of OpenAI's formats.
 */
#ifndef REGPILOT_CHAT_H
#define REGPILOT_CHAT_H

#include "buffer.h"
#include "reply.h"

#include <jansson.h>
#include <stdint.h>

/* characters, as for a route's alias in the database */
#define CHAT_MODEL_MAX 200

/* A request for a chat, or for embeddings. */
typedef struct Chat
{
	const char *text; /* the request's body, the caller's */
	size_t length;
	json_t *body;		 /* the object that it is; owned */
	const char *quality; /* quality and model live in body; quality has a default */
	const char *model;	 /* NULL: none asked for */
	bool embeds;		 /* it is for embeddings */
	bool stream;		 /* of a chat alone */
	bool wants_usage;	 /* of a stream: the client has asked for it */
} Chat;

/* Tokens, by the upstream's count, which may be absurd: the database bounds it; 0: unknown. */
typedef struct Usage
{
	int64_t prompt_tokens;
	int64_t completion_tokens;
} Usage;

/* The member, or NULL where it is absent or null: clients write both for "not given". */
extern json_t *chat_member(const json_t *object, const char *name);

/* Bytes of JSON that take milliseconds to read, in which a task's thread does nothing else: see task_call(). */
#define CHAT_LARGE (256 * 1024)

/* Whether the value is a string that can name a model. */
extern bool chat_is_model_name(const json_t *value);

/*
 * Reads and checks the body of either. Gives REFUSAL_NONE, and then the caller
 * keeps text until it calls chat_free, or says what is wrong with it.
 */
extern Refusal chat_parse(const char *text, size_t length, bool stream_default, Chat *chat)
	__attribute__((warn_unused_result));
extern Refusal chat_parse_embeddings(const char *text, size_t length, Chat *chat)
	__attribute__((warn_unused_result));
extern void chat_free(Chat *chat);

/*
 * Appends the body that an upstream gets: as the client wrote it, but for model and
 * stream, without quality, and where it asks for a stream with stream_options that ask
 * for usage as well, if ask_usage. False: out of memory, or too large.
 */
extern bool chat_upstream_body(const Chat *chat, const char *model, bool ask_usage, Buffer *body)
	__attribute__((warn_unused_result));

/* Appends the text of a message: its content, or the text parts of it. */
extern void chat_message_text(const json_t *message, Buffer *text);

/* What an answer, or a chunk of a streamed one, says of usage. */
typedef enum ChatKind
{
	CHAT_WITHOUT_USAGE, /* there is no such member */
	CHAT_WITH_USAGE,	/* there is one, be it null, beside others */
	CHAT_ALL_USAGE		/* a chunk of nothing else, which comes only to those who asked */
} ChatKind;

/*
 * Reads the usage in an answer, or in a chunk of a streamed one, and leaves
 * *usage alone when there is none. False when the text is not a JSON object.
 */
extern bool chat_read_usage(const char *text, size_t length, Usage *usage, ChatKind *kind)
	__attribute__((warn_unused_result));

/* Appends the chunk without its usage. */
extern bool chat_strip_usage(const char *text, size_t length, Buffer *chunk)
	__attribute__((warn_unused_result));

/* Whether the text is JSON at all. */
extern bool chat_is_json(const char *text, size_t length);

#endif
