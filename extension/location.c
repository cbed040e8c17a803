/*-------------------------------------------------------------------------
 *
 * location.c
 *		Hints where the row and the usage slot of a key are, in shared memory.
 *
 * A digest belongs in one set of as many hints as fill a cache line.  There are
 * no locks.  Row and slot are an atomic number each, read whole or not at all;
 * that a row of one key and a slot of another come together does no more harm
 * than any other wrong hint.
 *
 * All databases share the hints.  One of another database is just as wrong as
 * one of a row that is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "location.h"

#include "port/atomics.h"
#include "storage/shmem.h"

#define SET_SIZE 4 /* of 16 bytes: a cache line */

typedef struct Hint
{
	pg_atomic_uint64 row;  /* see below */
	pg_atomic_uint32 slot; /* as in Location */
} Hint;

typedef struct HintSet
{
	Hint hints[SET_SIZE]; /* used from the first on, and never given back */
} HintSet;

/* Of a row: the number of its block, its offset there, and a tag of the digest. */
#define MAKE_ROW(block, offset, tag) ((uint64) (block) << 32 | (uint32) (offset) << 16 | (tag))
#define ROW_BLOCK(row) ((BlockNumber) ((row) >> 32))
#define ROW_OFFSET(row) ((OffsetNumber) ((row) >> 16))
#define ROW_TAG(row) ((uint16) (row))
#define NO_ROW 0 /* none has offset 0 */

static HintSet *sets;
static Size set_count; /* a power of two */

/* Room for two hints a key: then few sets have more keys than hints. */
Size
location_size(void)
{
	set_count = 1;
	while (set_count * SET_SIZE < 2 * (Size) regpilot_max_keys)
		set_count *= 2;
	return mul_size(set_count, sizeof(HintSet));
}

void
location_attach(void)
{
	bool found;

	sets = ShmemInitStruct("regpilot locations", location_size(), &found);
	for (Size i = 0; !found && i < set_count * SET_SIZE; i++)
	{
		Hint *hint = &sets[i / SET_SIZE].hints[i % SET_SIZE];

		pg_atomic_init_u64(&hint->row, NO_ROW);
		pg_atomic_init_u32(&hint->slot, LOCATION_NO_SLOT);
	}
}

/* The set for a digest.  Its bits are as good as random; find_hint() uses others. */
static HintSet *
find_set(const uint8 digest[KEY_DIGEST_LENGTH])
{
	uint32 number;

	memcpy(&number, digest, sizeof(number));
	return &sets[number & (set_count - 1)];
}

/*
 * The hint for a digest, or if there is none the one to use for it, and the tag
 * that tells which.
 */
static Hint *
find_hint(const uint8 digest[KEY_DIGEST_LENGTH], uint16 *tag)
{
	HintSet *set = find_set(digest);

	memcpy(tag, digest + sizeof(uint32), sizeof(*tag));
	for (int i = 0; i < SET_SIZE; i++)
	{
		uint64 row = pg_atomic_read_u64(&set->hints[i].row);

		if (row == NO_ROW || ROW_TAG(row) == *tag)
			return &set->hints[i];
	}
	return &set->hints[*tag % SET_SIZE];
}

void
location_prefetch(const uint8 digest[KEY_DIGEST_LENGTH])
{
	if (sets != NULL) /* that is, if preloaded */
		__builtin_prefetch(find_set(digest));
}

Location
location_recall(const uint8 digest[KEY_DIGEST_LENGTH])
{
	Location location = {.slot = LOCATION_NO_SLOT};
	uint16 tag;
	Hint *hint = find_hint(digest, &tag);
	uint64 row = pg_atomic_read_u64(&hint->row);

	if (row != NO_ROW && ROW_TAG(row) == tag)
	{
		ItemPointerSet(&location.row, ROW_BLOCK(row), ROW_OFFSET(row));
		location.slot = pg_atomic_read_u32(&hint->slot);
	}
	return location;
}

void
location_remember(const uint8 digest[KEY_DIGEST_LENGTH], const Location *location)
{
	uint16 tag;
	Hint *hint = find_hint(digest, &tag);
	uint64 row = MAKE_ROW(ItemPointerGetBlockNumber(&location->row),
						  ItemPointerGetOffsetNumber(&location->row), tag);

	/* mostly they are there, and what nobody writes to stays in all caches */
	if (pg_atomic_read_u64(&hint->row) != row)
		pg_atomic_write_u64(&hint->row, row);
	if (pg_atomic_read_u32(&hint->slot) != location->slot)
		pg_atomic_write_u32(&hint->slot, location->slot);
}
