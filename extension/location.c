/*-------------------------------------------------------------------------
 *
 * location.c
 *		Hints where in the table the rows of keys are, in shared memory.
 *
 * A digest belongs in one set of as many hints as fill a cache line.  There are
 * no locks: a hint is one atomic number, so it is read whole or not at all, and
 * if two processes write the same one, either will do.
 *
 * All databases share the hints.  One of another database is just as wrong as
 * one of a row that is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "location.h"

#include "port/atomics.h"
#include "storage/shmem.h"

#define SET_SIZE 8 /* of 8 bytes: a cache line */

typedef struct LocationSet
{
	pg_atomic_uint64 hints[SET_SIZE]; /* used from the first on, and never given back */
} LocationSet;

/* In a hint: the number of a block, an offset in it, and a tag of the digest. */
#define MAKE_HINT(block, offset, tag) ((uint64) (block) << 32 | (uint32) (offset) << 16 | (tag))
#define HINT_BLOCK(hint) ((BlockNumber) ((hint) >> 32))
#define HINT_OFFSET(hint) ((OffsetNumber) ((hint) >> 16))
#define HINT_TAG(hint) ((uint16) (hint))
#define NO_HINT 0 /* no row has offset 0 */

static LocationSet *sets;
static Size set_count; /* a power of two */

/* Room for two hints a key: then hardly any set has more keys than hints. */
Size
location_size(void)
{
	set_count = 1;
	while (set_count * SET_SIZE < 2 * (Size) regpilot_max_keys)
		set_count *= 2;
	return mul_size(set_count, sizeof(LocationSet));
}

void
location_attach(void)
{
	bool found;

	sets = ShmemInitStruct("regpilot locations", location_size(), &found);
	for (Size i = 0; !found && i < set_count * SET_SIZE; i++)
		pg_atomic_init_u64(&sets[i / SET_SIZE].hints[i % SET_SIZE], NO_HINT);
}

/*
 * The hint for a digest, or if there is none the one to use for it, and the tag
 * that tells which.
 */
static pg_atomic_uint64 *
find_hint(const uint8 digest[KEY_DIGEST_LENGTH], uint16 *tag)
{
	uint64 number;
	LocationSet *set;

	/* a digest's bits are as good as random: some choose the set, others are the tag */
	memcpy(&number, digest, sizeof(number));
	set = &sets[number & (set_count - 1)];
	*tag = (uint16) (number >> 48);

	for (int i = 0; i < SET_SIZE; i++)
	{
		uint64 hint = pg_atomic_read_u64(&set->hints[i]);

		if (hint == NO_HINT || HINT_TAG(hint) == *tag)
			return &set->hints[i];
	}
	return &set->hints[*tag % SET_SIZE];
}

bool
location_recall(const uint8 digest[KEY_DIGEST_LENGTH], ItemPointer location)
{
	uint16 tag;
	uint64 hint = pg_atomic_read_u64(find_hint(digest, &tag));

	if (hint == NO_HINT || HINT_TAG(hint) != tag)
		return false;
	ItemPointerSet(location, HINT_BLOCK(hint), HINT_OFFSET(hint));
	return true;
}

void
location_remember(const uint8 digest[KEY_DIGEST_LENGTH], const ItemPointerData *location)
{
	uint16 tag;
	pg_atomic_uint64 *hint = find_hint(digest, &tag);

	pg_atomic_write_u64(hint, MAKE_HINT(ItemPointerGetBlockNumber(location),
										ItemPointerGetOffsetNumber(location), tag));
}
