/*-------------------------------------------------------------------------
 *
 * key.h
 *		The text of a key: making one, its checksum, its digest, its hint.
 *		Nothing here touches a catalog or shared memory.
 *
 * A key is "sk_", an optional "dev_", "staging_", "prod_" or "ci_", and 32
 * characters of [0-9a-z]: 25 random ones (129 bits) and 7 of CRC-32 in base
 * 36 over all that precedes.  The checksum is a courtesy to secret scanners:
 * no key is refused for it, since imported keys have none.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_KEY_H
#define REGPILOT_KEY_H

#include "postgres.h"

#define KEY_DIGEST_LENGTH 32 /* SHA-256 */

/* A new random key for an environment, or for none (NULL).  Palloc'd. */
extern char *key_generate(const char *environment);

/* Whether the text has the form of a key made here and a checksum that fits. */
extern bool key_checksum_ok(const char *key, size_t length);

/* Whether such a key stands anywhere in a text. */
extern bool key_is_within(const char *text, size_t length);

/* A text with the hints of such keys in their places.  Palloc'd. */
extern char *key_hide_within(const char *text, size_t length);

/* SHA-256 of any bytes (FIPS 180-4).  Raises an error if that fails. */
extern void key_digest(const void *key, size_t length, uint8 digest[KEY_DIGEST_LENGTH]);

/*
 * What a list may show of a key made here: "sk_prod_...a1b2", its prefix and
 * its last four characters.  Palloc'd.
 */
extern char *key_hint(const char *key);

#endif /* REGPILOT_KEY_H */
