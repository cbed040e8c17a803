/*
 * embedding.h
 *	  What builtin:echo has for an embedding: the words of a text, hashed.
 *
 * Texts that share words have vectors that are near each other, so that what is
 * built on embeddings can be tried without an account. Of meaning it knows nothing.
 */
#ifndef REGPILOT_EMBEDDING_H
#define REGPILOT_EMBEDDING_H

#include "buffer.h"

/* Numbers in a vector: unless the request says otherwise, and at most. */
#define EMBEDDING_DIMENSIONS 256
#define EMBEDDING_DIMENSIONS_MAX 2048

/*
 * A vector is begun, gets its features in any order, and is finished: of length 1
 * then, and the same for the same features on any machine.
 */
extern void embedding_begin(float *vector, int dimensions);
extern void embedding_add(float *vector, int dimensions, const char *feature, size_t length);
extern void embedding_add_words(float *vector, int dimensions, const char *text, size_t length);
extern void embedding_finish(float *vector, int dimensions);

/* Appends it as OpenAI does for encoding_format "float" and "base64". */
extern void embedding_print(const float *vector, int dimensions, bool base64, Buffer *text);

#endif
