/*-------------------------------------------------------------------------
 *
 * key.c
 *		The text of a key: making one, its checksum, its digest, its hint.
 *
 *-------------------------------------------------------------------------
 */
#include "key.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/pg_crc.h"

#include "compat.h"

#define KEY_PREFIX "sk_"
#define KEY_RANDOM_LENGTH 25  /* 36^25 > 2^129 */
#define KEY_CHECKSUM_LENGTH 7 /* 36^7 > 2^32 */
#define KEY_BODY_LENGTH (KEY_RANDOM_LENGTH + KEY_CHECKSUM_LENGTH)
#define KEY_HINT_TAIL 4

static const char base36[] = "0123456789abcdefghijklmnopqrstuvwxyz";

static const char *const prefixes[] = {KEY_PREFIX, KEY_PREFIX "dev_", KEY_PREFIX "staging_",
									   KEY_PREFIX "prod_", KEY_PREFIX "ci_"};

PG_FUNCTION_INFO_V1(regpilot_key_checksum_ok);

/*
 * The seven base-36 digits of CRC-32 (the one of ISO 3309, zlib and PNG) over
 * some text, most significant first, without a terminator.
 */
static void
compute_checksum(const char *text, size_t length, char checksum[KEY_CHECKSUM_LENGTH])
{
	pg_crc32 crc;

	INIT_TRADITIONAL_CRC32(crc);
	COMP_TRADITIONAL_CRC32(crc, text, length);
	FIN_TRADITIONAL_CRC32(crc);

	for (int i = KEY_CHECKSUM_LENGTH - 1; i >= 0; i--)
	{
		checksum[i] = base36[crc % 36];
		crc /= 36;
	}
}

/* Append random base-36 digits, each as likely as any other. */
static void
append_random(StringInfo text, int count)
{
	uint8 bytes[64];
	int next = sizeof(bytes);

	while (count > 0)
	{
		if (next == sizeof(bytes))
		{
			if (!pg_strong_random(bytes, sizeof(bytes)))
				ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
								errmsg("could not generate random bytes for a key")));
			next = 0;
		}

		/* 252 = 7 * 36: the bytes above would favour the first four digits */
		if (bytes[next] < 252)
		{
			appendStringInfoChar(text, base36[bytes[next] % 36]);
			count--;
		}
		next++;
	}
}

char *
key_generate(const char *environment)
{
	StringInfoData key;
	char checksum[KEY_CHECKSUM_LENGTH];

	initStringInfo(&key);
	appendStringInfoString(&key, KEY_PREFIX);
	if (environment != NULL)
		appendStringInfo(&key, "%s_", environment);
	append_random(&key, KEY_RANDOM_LENGTH);
	compute_checksum(key.data, key.len, checksum);
	appendBinaryStringInfo(&key, checksum, sizeof(checksum));
	return key.data;
}

/* Length of the part of a key before its 32 characters, or -1 if it has none. */
static int
prefix_length(const char *key, size_t length)
{
	for (int i = 0; i < lengthof(prefixes); i++)
	{
		size_t prefix = strlen(prefixes[i]);

		if (length == prefix + KEY_BODY_LENGTH && memcmp(key, prefixes[i], prefix) == 0)
			return (int) prefix;
	}
	return -1;
}

bool
key_checksum_ok(const char *key, size_t length)
{
	int prefix = prefix_length(key, length);
	char checksum[KEY_CHECKSUM_LENGTH];

	if (prefix < 0)
		return false;
	for (size_t i = prefix; i < length; i++)
	{
		if (!((key[i] >= '0' && key[i] <= '9') || (key[i] >= 'a' && key[i] <= 'z')))
			return false;
	}
	compute_checksum(key, length - KEY_CHECKSUM_LENGTH, checksum);
	return memcmp(checksum, key + length - KEY_CHECKSUM_LENGTH, KEY_CHECKSUM_LENGTH) == 0;
}

/* The length of the key that a text begins with, 0 if it does not. */
static size_t
key_length_at(const char *text, size_t length)
{
	for (int i = 0; i < lengthof(prefixes); i++)
	{
		size_t key_length = strlen(prefixes[i]) + KEY_BODY_LENGTH;

		if (key_length <= length && key_checksum_ok(text, key_length))
			return key_length;
	}
	return 0;
}

bool
key_is_within(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		if (key_length_at(text + i, length - i) > 0)
			return true;
	}
	return false;
}

char *
key_hide_within(const char *text, size_t length)
{
	StringInfoData hidden;

	initStringInfo(&hidden);
	for (size_t i = 0; i < length;)
	{
		size_t key_length = key_length_at(text + i, length - i);

		if (key_length > 0)
			appendStringInfoString(&hidden, key_hint(pnstrdup(text + i, key_length)));
		else
			appendStringInfoChar(&hidden, text[i]);
		i += Max(key_length, 1);
	}
	return hidden.data;
}

static void
require_openssl(bool done)
{
	if (!done)
		ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR),
						errmsg("could not compute the digest of a key: %s",
							   ERR_reason_error_string(ERR_get_error()))));
}

/* A context to compute SHA-256 in. */
static EVP_MD_CTX *
make_context(void)
{
	static EVP_MD *sha256 = NULL;
	EVP_MD_CTX *context;

	if (sha256 == NULL)
		sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	require_openssl(sha256 != NULL && EVP_MD_get_size(sha256) == KEY_DIGEST_LENGTH);

	context = EVP_MD_CTX_new();
	if (context == NULL || !EVP_DigestInit_ex2(context, sha256, NULL))
	{
		EVP_MD_CTX_free(context);
		context = NULL;
	}
	require_openssl(context != NULL);
	return context;
}

/*
 * OpenSSL is used directly, since the server's pg_cryptohash_create() looks the
 * algorithm up each time, which takes longer than the digest of a key.
 */
void
key_digest(const void *key, size_t length, uint8 digest[KEY_DIGEST_LENGTH])
{
	static EVP_MD_CTX *context = NULL;
	bool done;

	if (context == NULL)
		context = make_context();

	/* initialised at the end: it forgets the key, and is ready for the next one */
	done = EVP_DigestUpdate(context, key, length) && EVP_DigestFinal_ex(context, digest, NULL) &&
		   EVP_DigestInit_ex2(context, NULL, NULL);
	if (!done)
	{
		EVP_MD_CTX_free(context);
		context = NULL;
	}
	require_openssl(done);
}

char *
key_hint(const char *key)
{
	size_t length = strlen(key);

	return psprintf("%.*s...%s", (int) (length - KEY_BODY_LENGTH), key,
					key + length - KEY_HINT_TAIL);
}

Datum
regpilot_key_checksum_ok(PG_FUNCTION_ARGS)
{
	text *key = PG_GETARG_TEXT_PP(0);

	PG_RETURN_BOOL(key_checksum_ok(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)));
}
