/*-------------------------------------------------------------------------
 *
 * loadclient.c
 *		One connection of a load test, which keeps a record of what it asked,
 *		when, and what came of it.
 *
 *	loadclient authorize CONNINFO LOG KEYS [NAME=NUMBER...]
 *	loadclient execute CONNINFO
 *
 * "authorize" asks for verdicts, one call after the other, until SIGTERM.  Each
 * line of the file KEYS is a number, which stands for the key in the log, a
 * space and the key.  Keys are taken at random, and one a call, unless
 *
 *	batch=N			N at a time are judged, by regpilot.authorize_many()
 *	refusals=N		the keys are taken in turn, each until it has been refused N
 *					times in a row, and that is all
 *	transaction=N	N calls make a transaction, which is REPEATABLE READ
 *	burst=N pause=N	a pause of some milliseconds follows some calls: of twice as
 *					many at most
 *	seed=N			sets what is random
 *
 * "execute" executes each line of its standard input, and prints for each when
 * it was sent, when it was done, and "done" or an SQLSTATE.
 *
 * Times are microseconds of CLOCK_MONOTONIC.  A connection that is lost is made
 * again: a statement is then executed again, but not a call.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <libpq-fe.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RETRY_MICROSECONDS 10000
#define BATCH_MAX 1000
#define LINE_SIZE 4096
#define OUTCOME_SIZE 12

/*
 * A verdict that was asked for, as the log has it.  It is written before the
 * call is sent, and again when the outcome is known: so it is there, whatever
 * becomes of this process.
 */
typedef struct Record
{
	int64_t sent;
	int64_t received;			/* 0: not yet */
	int32_t number;				/* of the key */
	char outcome[OUTCOME_SIZE]; /* verdict, SQLSTATE or "lost"; zero-padded */
} Record;

_Static_assert(sizeof(Record) == 32, "a record has no padding");

typedef struct Key
{
	int number;
	char *text;
} Key;

static int batch = 1;
static int refusals = 0;
static int transaction = 0;
static int burst = 0;
static int pause_ms = 0;
static int seed = 1;

static const struct
{
	const char *name;
	int *value;
} options[] = {
	{"batch", &batch}, {"refusals", &refusals}, {"transaction", &transaction},
	{"burst", &burst}, {"pause", &pause_ms},	{"seed", &seed},
};

#define OPTION_COUNT ((int) (sizeof(options) / sizeof(options[0])))

static const char *conninfo;
static PGconn *connection;
static int log_file;
static off_t log_end;

static Key *keys;
static int key_count;

static volatile sig_atomic_t stopping = 0;

static void
stop(int signal_number)
{
	(void) signal_number;
	stopping = 1;
}

__attribute__((noreturn, format(printf, 1, 2))) static void
die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("loadclient: ", stderr);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

static int64_t
monotonic_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* A command that opens or ends a transaction; what it says does not matter. */
static void
command(const char *sql)
{
	PQclear(PQexec(connection, sql));
}

static void
begin(void)
{
	if (transaction > 0)
		command("BEGIN ISOLATION LEVEL REPEATABLE READ");
}

/* Prepare the call.  False if the connection was lost over it. */
static bool
prepare(void)
{
	PGresult *result = PQprepare(
		connection, "call",
		batch == 1 ? "SELECT verdict FROM regpilot.authorize($1)"
				   : "SELECT verdict FROM regpilot.authorize_many($1, $2,"
					 " array_fill('gateway:write'::text, ARRAY[cardinality($1::int[])]),"
					 " array_fill(NULL::text, ARRAY[cardinality($1::int[])])) ORDER BY ordinal",
		0, NULL);
	bool done = PQresultStatus(result) == PGRES_COMMAND_OK;

	PQclear(result);
	if (!done && PQstatus(connection) == CONNECTION_OK)
		die("%s", PQerrorMessage(connection));
	begin();
	return done;
}

/* What the server says on the way is not asked for. */
static void
ignore_notice(void *argument, const char *message)
{
	(void) argument;
	(void) message;
}

/* Connect, however long it takes.  False if told to stop. */
static bool
connect_again(bool with_call)
{
	while (!stopping)
	{
		PQfinish(connection);
		connection = PQconnectdb(conninfo);
		PQsetNoticeProcessor(connection, ignore_notice, NULL);
		if (PQstatus(connection) == CONNECTION_OK && (!with_call || prepare()))
			return true;
		usleep(RETRY_MICROSECONDS);
	}
	return false;
}

/* The SQLSTATE of an error, "lost" where the server could not even say that. */
static const char *
error_of(const PGresult *result)
{
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	return state != NULL ? state : "lost";
}

/* Write the records of a call to the end of the log. */
static void
write_records(const Record *records)
{
	size_t size = batch * sizeof(Record);

	if (pwrite(log_file, records, size, log_end) != (ssize_t) size)
		die("cannot write the log");
}

static void
set_outcome(Record *record, int64_t received, const char *outcome)
{
	record->received = received;
	memcpy(record->outcome, outcome, strnlen(outcome, OUTCOME_SIZE));
}

/* The parameters of regpilot.authorize_many(): ordinals and secrets. */
static PGresult *
authorize_many(Key *const *chosen)
{
	static char ordinals[BATCH_MAX * 12];
	static char secrets[BATCH_MAX * 64];
	const char *values[] = {ordinals, secrets};
	int ordinals_end = 0;
	int secrets_end = 0;

	for (int i = 0; i < batch; i++)
	{
		char separator = i == 0 ? '{' : ',';

		ordinals_end += sprintf(ordinals + ordinals_end, "%c%d", separator, i);
		secrets_end += sprintf(secrets + secrets_end, "%c%.60s", separator, chosen[i]->text);
	}
	strcpy(ordinals + ordinals_end, "}");
	strcpy(secrets + secrets_end, "}");
	return PQexecPrepared(connection, "call", 2, values, NULL, NULL, 0);
}

/* One parameter, in binary: the bytes of the key. */
static PGresult *
authorize(const Key *key)
{
	const char *values[] = {key->text};
	int lengths[] = {(int) strlen(key->text)};
	int formats[] = {1};

	return PQexecPrepared(connection, "call", 1, values, lengths, formats, 0);
}

/*
 * Ask for verdicts on the chosen keys, a whole batch of them.  Returns whether
 * there was an answer, which *refused says was a refusal (of the last key).
 */
static bool
call(Key *const *chosen, bool *refused)
{
	static Record records[BATCH_MAX];
	PGresult *result;
	int64_t now = monotonic_now();
	bool answered;

	memset(records, 0, batch * sizeof(Record));
	for (int i = 0; i < batch; i++)
	{
		records[i].sent = now;
		records[i].number = chosen[i]->number;
	}
	write_records(records);

	result = batch == 1 ? authorize(chosen[0]) : authorize_many(chosen);
	now = monotonic_now();

	answered = PQresultStatus(result) == PGRES_TUPLES_OK;
	if (answered && PQntuples(result) != batch)
		die("%d verdicts for %d keys", PQntuples(result), batch);
	for (int i = 0; i < batch; i++)
		set_outcome(&records[i], now, answered ? PQgetvalue(result, i, 0) : error_of(result));
	PQclear(result);

	write_records(records);
	log_end += batch * sizeof(Record);
	*refused = answered && strncmp(records[batch - 1].outcome, "ok", OUTCOME_SIZE) != 0;
	return answered;
}

/* Choose the keys of the next call.  False if there are no more. */
static bool
choose(Key **chosen, bool refused)
{
	static int current = 0;
	static int in_a_row = 0;

	in_a_row = refused ? in_a_row + batch : 0;
	if (refusals > 0 && in_a_row >= refusals)
	{
		in_a_row = 0;
		if (++current == key_count)
			return false;
	}
	for (int i = 0; i < batch; i++)
		chosen[i] = &keys[refusals > 0 ? current : random() % key_count];
	return true;
}

/* After a call: see to the connection and the transaction, and pause. */
static void
pace(bool answered)
{
	static int calls = 0; /* in this transaction */
	static int until_pause = 0;

	if (!answered)
	{
		connect_again(true);
		calls = 0;
	}
	else if (transaction > 0 && ++calls >= transaction)
	{
		command("ROLLBACK"); /* what has been counted stays so */
		begin();
		calls = 0;
	}

	if (burst > 0 && until_pause-- == 0)
	{
		until_pause = random() % (2 * burst);
		usleep(random() % (2 * pause_ms * 1000));
	}
}

static void
read_keys(const char *file_name)
{
	FILE *file = fopen(file_name, "r");
	Key key;

	if (file == NULL)
		die("cannot read \"%s\"", file_name);
	while (fscanf(file, "%d %ms", &key.number, &key.text) == 2)
	{
		keys = realloc(keys, (key_count + 1) * sizeof(Key));
		if (keys == NULL)
			die("out of memory");
		keys[key_count++] = key;
	}
	fclose(file);
	if (key_count == 0)
		die("no keys in \"%s\"", file_name);
}

static void
read_option(const char *argument)
{
	size_t length = strcspn(argument, "=");

	for (int i = 0; i < OPTION_COUNT; i++)
	{
		if (strlen(options[i].name) == length && strncmp(options[i].name, argument, length) == 0)
		{
			*options[i].value = atoi(argument + length + (argument[length] == '='));
			return;
		}
	}
	die("no such option: %s", argument);
}

static void
ask_for_verdicts(const char *log_name)
{
	Key *chosen[BATCH_MAX];
	bool refused = false;

	log_file = open(log_name, O_CREAT | O_EXCL | O_WRONLY, 0600);
	if (log_file < 0)
		die("cannot write \"%s\"", log_name);

	srandom(seed);
	if (!connect_again(true))
		return;
	while (!stopping && choose(chosen, refused))
		pace(call(chosen, &refused));
}

/* Execute a statement, again if need be, until the server says what came of it. */
static void
execute(const char *sql)
{
	int64_t sent = monotonic_now();

	while (!stopping)
	{
		PGresult *result = PQexec(connection, sql);
		int64_t received = monotonic_now();
		ExecStatusType status = PQresultStatus(result);
		bool done = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
		const char *error = error_of(result);

		/* class 57: the server ends, or the connection does */
		if (done || (strcmp(error, "lost") != 0 && strncmp(error, "57", 2) != 0))
		{
			printf("%lld %lld %s\n", (long long) sent, (long long) received, done ? "done" : error);
			fflush(stdout);
			PQclear(result);
			return;
		}
		PQclear(result);
		connect_again(false);
	}
}

static void
execute_statements(void)
{
	char line[LINE_SIZE];

	if (!connect_again(false))
		return;
	while (!stopping && fgets(line, sizeof(line), stdin) != NULL)
		execute(line);
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = stop}; /* no SA_RESTART: ends a pause */

	sigaction(SIGTERM, &action, NULL);

	if (argc == 3 && strcmp(argv[1], "execute") == 0)
	{
		conninfo = argv[2];
		execute_statements();
	}
	else if (argc >= 5 && strcmp(argv[1], "authorize") == 0)
	{
		conninfo = argv[2];
		read_keys(argv[4]);
		for (int i = 5; i < argc; i++)
			read_option(argv[i]);
		if (batch < 1 || batch > BATCH_MAX || (burst > 0 && pause_ms < 1))
			die("option out of range");
		ask_for_verdicts(argv[3]);
	}
	else
		die("usage: loadclient authorize CONNINFO LOG KEYS [NAME=NUMBER...]\n"
			"       loadclient execute CONNINFO");

	PQfinish(connection);
	return 0;
}
