/*-------------------------------------------------------------------------
 *
 * saved.c
 *		What is in shared memory, saved in a file over a restart of the server.
 *
 * The postmaster saves when all other processes are gone: at a stop of the
 * server the rate windows, and the counts that came too late for the worker's
 * last flush; before it makes shared memory anew after a crash the windows
 * alone, as nobody knows what the crashed process did, and a window that is
 * wrong harms for a minute only; after a start that failed all that it had
 * loaded.  When the postmaster itself dies the worker saves in its place.  The
 * file is removed and loaded by the postmaster that starts next.
 *
 * Counts of a server that could flush, loaded by one that follows another or replays
 * an archive, may be in what it has yet to replay, as where the data directory is a
 * copy.  It takes the windows alone: lost counts are better than doubled ones.
 *
 * The clock of the windows goes on while the machine is up.  After a boot it
 * begins anew, and the time away does not count, as no other clock can be
 * trusted.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/pmsignal.h"
#include "storage/shmem.h"

#include "saved.h"
#include "usage.h"

#define SAVED_FILE PGSTAT_STAT_PERMANENT_DIRECTORY "/regpilot.stat"
#define SAVED_TEMPORARY_FILE SAVED_FILE ".tmp"
#define SAVED_MAGIC 0x52507631 /* "RPv1" */
#define BOOT_ID_FILE "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_LENGTH 36

typedef struct SavedHeader
{
	uint32 magic;
	uint32 record_size; /* of another build's records: not for us */
	bool could_flush;	/* there was a worker, other than on a standby */
	int64 clock;		/* usage_clock() when saved */
	char boot_id[BOOT_ID_LENGTH];
	uint32 count; /* of the records that follow, and then CRC-32C of it all */
} SavedHeader;

static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

/* The counts that were loaded at the start came from a server that could flush. */
static bool loaded_could_flush = false;

/* What the kernel calls the boot that we run in; all zero if it does not say. */
static void
read_boot_id(char boot_id[BOOT_ID_LENGTH])
{
	FILE *file = AllocateFile(BOOT_ID_FILE, PG_BINARY_R);

	if (file == NULL || fread(boot_id, BOOT_ID_LENGTH, 1, file) != 1)
		memset(boot_id, 0, BOOT_ID_LENGTH);
	if (file != NULL)
		FreeFile(file);
}

static bool
write_part(FILE *file, pg_crc32c *crc, const void *data, size_t size)
{
	COMP_CRC32C(*crc, data, size);
	return fwrite(data, size, 1, file) == 1;
}

static bool
read_part(FILE *file, pg_crc32c *crc, void *data, size_t size)
{
	if (fread(data, size, 1, file) != 1)
		return false;
	COMP_CRC32C(*crc, data, size);
	return true;
}

/* Write all records to a file.  False with errno set if that failed. */
static bool
write_records(FILE *file, bool counters)
{
	SavedHeader header;
	pg_crc32c crc;
	UsageRecord record;
	int position = 0;

	memset(&header, 0, sizeof(header)); /* padding is written too */
	header.magic = SAVED_MAGIC;
	header.record_size = sizeof(UsageRecord);
	header.could_flush = loaded_could_flush || usage_has_worker();
	header.clock = usage_clock();
	read_boot_id(header.boot_id);
	while (usage_next_record(&position, counters, &record))
		header.count++;

	INIT_CRC32C(crc);
	if (!write_part(file, &crc, &header, sizeof(header)))
		return false;

	/* as many as counted: a window may become empty meanwhile */
	position = 0;
	for (uint32 i = 0; i < header.count; i++)
	{
		if (!usage_next_record(&position, counters, &record))
			memset(&record, 0, sizeof(record));
		if (!write_part(file, &crc, &record, sizeof(record)))
			return false;
	}
	FIN_CRC32C(crc);
	return fwrite(&crc, sizeof(crc), 1, file) == 1;
}

/* Write the temporary file.  False with errno set if that failed. */
static bool
write_file(bool counters)
{
	FILE *file = AllocateFile(SAVED_TEMPORARY_FILE, PG_BINARY_W);
	bool written;

	if (file == NULL)
		return false;
	written = write_records(file, counters);
	return FreeFile(file) == 0 && written;
}

/* Save, with the counts or the rate windows alone.  Raises nothing. */
static void
save(bool counters)
{
	if (write_file(counters))
		(void) durable_rename(SAVED_TEMPORARY_FILE, SAVED_FILE, LOG);
	else
	{
		ereport(LOG, (errcode_for_file_access(),
					  errmsg("could not write file \"%s\": %m", SAVED_TEMPORARY_FILE)));
		unlink(SAVED_TEMPORARY_FILE);
	}
}

/* Runs in the postmaster at its end, or before it makes shared memory anew. */
static void
save_in_postmaster(int code, Datum arg)
{
	/* a start that failed has left what was loaded as it was */
	save(code == 0 || !usage_has_worker());
}

/* Read the header; false if the file is not ours. */
static bool
read_header(FILE *file, pg_crc32c *crc, SavedHeader *header)
{
	return read_part(file, crc, header, sizeof(*header)) && header->magic == SAVED_MAGIC &&
		   header->record_size == sizeof(UsageRecord);
}

/* Whether what remains of the file is the records that were written. */
static bool
verify_records(FILE *file, const SavedHeader *header, pg_crc32c crc)
{
	UsageRecord record;
	pg_crc32c saved_crc;

	for (uint32 i = 0; i < header->count; i++)
	{
		if (!read_part(file, &crc, &record, sizeof(record)))
			return false;
	}
	FIN_CRC32C(crc);
	return fread(&saved_crc, sizeof(saved_crc), 1, file) == 1 && EQ_CRC32C(crc, saved_crc);
}

/* Whether the server that starts will replay what others have written. */
static bool
follows_others(void)
{
	struct stat ignored;

	return stat(STANDBY_SIGNAL_FILE, &ignored) == 0 || stat(RECOVERY_SIGNAL_FILE, &ignored) == 0;
}

/* Load the records, all or, if the file is damaged, none. */
static void
load_records(FILE *file)
{
	SavedHeader header;
	pg_crc32c crc;
	UsageRecord record;
	char boot_id[BOOT_ID_LENGTH];
	int64 shift = 0;
	bool counters;
	uint32 lost = 0;

	INIT_CRC32C(crc);
	if (!read_header(file, &crc, &header) || !verify_records(file, &header, crc) ||
		fseek(file, sizeof(header), SEEK_SET) != 0)
	{
		ereport(LOG, (errcode(ERRCODE_DATA_CORRUPTED),
					  errmsg("ignoring invalid data in file \"%s\"", SAVED_FILE)));
		return;
	}

	read_boot_id(boot_id);
	if (boot_id[0] == '\0' || memcmp(boot_id, header.boot_id, BOOT_ID_LENGTH) != 0)
		shift = usage_clock() - header.clock;

	counters = !header.could_flush || !follows_others();
	loaded_could_flush = counters && header.could_flush;
	for (uint32 i = 0; i < header.count; i++)
	{
		if (fread(&record, sizeof(record), 1, file) != 1)
			break; /* cannot be: it was verified */
		if (!counters)
			memset(record.counters, 0, sizeof(record.counters));
		if (OidIsValid(record.database) && !usage_restore_record(&record, shift))
			lost++;
	}
	if (lost > 0)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("%u keys saved by regpilot do not fit into shared memory", lost),
				 errdetail("Their rate windows begin empty, and what was not flushed is lost."),
				 errhint("Do not lower regpilot.max_keys below the number of keys in use.")));
}

static void
saved_shmem_startup(void)
{
	FILE *file;

	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();

	if (IsUnderPostmaster || IsBinaryUpgrade)
		return;

	/* callbacks are gone after a crash: register each time */
	on_shmem_exit(save_in_postmaster, (Datum) 0);

	file = AllocateFile(SAVED_FILE, PG_BINARY_R);
	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG, (errcode_for_file_access(),
						  errmsg("could not read file \"%s\": %m", SAVED_FILE)));
		return;
	}

	/* removed first: counts that are loaded twice are worse than lost ones */
	if (durable_unlink(SAVED_FILE, LOG) == 0)
		load_records(file);
	FreeFile(file);
}

/* Runs at the end of the worker. */
static void
save_in_worker(int code, Datum arg)
{
	if (PostmasterIsAlive())
		return;

	/* an error may have brought us here with locks in our hands */
	LWLockReleaseAll();
	if (usage_close())
		save(true);
	else
		ereport(LOG, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
					  errmsg("could not save rate windows after the postmaster's death"),
					  errdetail("A session does not leave shared memory.")));
}

void
saved_attach_worker(void)
{
	before_shmem_exit(save_in_worker, (Datum) 0);
}

void
saved_init(void)
{
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = saved_shmem_startup;
}
