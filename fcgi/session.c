/*
 * session.c
 *	  Sessions of the dashboard: each is a connection to the database, as the role that
 *	  signed in.
 *
 * Locking: "lock" protects the list, the failures, and the fields of a Session that say
 * so. Who uses a session holds a reference; the last one to release a closed session
 * frees it. Its connection is used by one task at a time, which is inside its gate.
 */
#include "session.h"
#include "authorizer.h"
#include "clock.h"
#include "config.h"
#include "database.h"
#include "gate.h"
#include "hex.h"
#include "log.h"
#include "metrics.h"
#include "task.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>

/* Requests that may wait for a session's connection; a browser makes six at a time. */
#define WAITING_MAX 32
/* ms that the server gets to let a role in */
#define SIGN_IN_TIMEOUT 10000
/* ms that a statement may run, and that a request waits in all */
#define STATEMENT_TIMEOUT "10s"
#define PATIENCE 15000
/* ms that it waits for those before it: so that a statement has the time to run into its own limit */
#define TURN_TIMEOUT 4000
/* ms between two looks for sessions that have been idle for too long, or last too long */
#define EXPIRY_INTERVAL 1000
#define LIFETIME (12 * 60 * 60 * 1000)
/* Roles, as seen from an address, whose failures are remembered; for so many ms */
#define FAILURES_KEPT 256
#define FAILURE_MEMORY (10 * 60 * 1000)
/* Attempts that are made at once: no more than may fail, so that none has to wait for others' sake */
#define SIGN_INS_AT_ONCE (FAILURES_FREE + 1)
/* Attempts that wait for their turn */
#define SIGN_INS_WAITING 64
/* Failures without consequences but for FAILURE_DELAY; then 1 s, 2 s, 4 s ... until this */
#define FAILURES_FREE 3
#define THROTTLE_MAX 60
/* ms that the answer to a failure takes at least */
#define FAILURE_DELAY 500
/* PostgreSQL's names have 63 bytes; passwords may be longer, up to this */
#define ROLE_MAX 63
#define PASSWORD_MAX 1024
#define ADDRESS_SIZE 64

struct Session
{
	char token[SESSION_TOKEN_SIZE];
	char role[ROLE_MAX + 1];
	bool admin;
	PGconn *connection;
	Gate gate;
	int64_t opened;

	/* protected by lock */
	int references;
	bool closed; /* no more on the list */
	int64_t used;
	LIST_ENTRY(Session) link;
};

/* What is remembered of a role's failed attempts from an address. */
typedef struct Failure
{
	char role[ROLE_MAX + 1];
	char address[ADDRESS_SIZE];
	int count; /* 0: none */
	int64_t last;
} Failure;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD(, Session) sessions = LIST_HEAD_INITIALIZER(sessions);
static int session_count;
static bool expiring; /* there is a task for that */
static Gate signing_in;
static _Atomic int64_t sign_ins;
static _Atomic int64_t sign_ins_failed;
static Failure failures[FAILURES_KEPT];

/* ---- failures ---- */

/* Whose failures are counted together: of IPv6 a network, all of which one client may have. */
static void
find_network(const char *address, char network[ADDRESS_SIZE])
{
	struct in6_addr bytes;

	snprintf(network, ADDRESS_SIZE, "%s", address);
	if (inet_pton(AF_INET6, address, &bytes) != 1 || IN6_IS_ADDR_V4MAPPED(&bytes))
		return;
	memset(&bytes.s6_addr[8], 0, 8);
	inet_ntop(AF_INET6, &bytes, network, ADDRESS_SIZE);
}

/* The entry for these two: theirs, or else the one that is to give way. Holds the lock. */
static Failure *
find_failure(const char *role, const char *address)
{
	Failure *least = &failures[0];

	for (int i = 0; i < FAILURES_KEPT; i++)
	{
		Failure *failure = &failures[i];

		if (failure->count > 0 && clock_ms() - failure->last > FAILURE_MEMORY)
			failure->count = 0;
		if (failure->count > 0 && strcmp(failure->role, role) == 0 &&
			strcmp(failure->address, address) == 0)
			return failure;
		/* Not the oldest: whoever has to wait could ask for others until it is forgotten. */
		if (failure->count < least->count ||
			(failure->count == least->count && failure->last < least->last))
			least = failure;
	}
	least->count = 0;
	snprintf(least->role, sizeof(least->role), "%s", role);
	snprintf(least->address, sizeof(least->address), "%s", address);
	return least;
}

/*
 * Seconds until another attempt. 0: now, and it counts as failed until it is known to be
 * none, for others may come meanwhile.
 */
static int
throttle(const char *role, const char *address)
{
	Failure *failure;
	int64_t seconds = 0;

	pthread_mutex_lock(&lock);
	failure = find_failure(role, address);
	if (failure->count > FAILURES_FREE)
	{
		int doublings = failure->count - FAILURES_FREE - 1;
		int64_t pause = doublings < 6 ? 1 << doublings : THROTTLE_MAX;

		seconds = (failure->last + pause * 1000 - clock_ms() + 999) / 1000;
	}
	if (seconds <= 0)
	{
		failure->count++;
		failure->last = clock_ms();
	}
	pthread_mutex_unlock(&lock);
	return seconds > 0 ? (int) seconds : 0;
}

/* all: the attempt succeeded; or else it failed, but not for its password. */
static void
forgive(const char *role, const char *address, bool all)
{
	Failure *failure;

	pthread_mutex_lock(&lock);
	failure = find_failure(role, address);
	if (failure->count > 0)
		failure->count = all ? 0 : failure->count - 1;
	pthread_mutex_unlock(&lock);
}

/* ---- the life of a session ---- */

static void
free_session(Session *session)
{
	PQfinish(session->connection);
	OPENSSL_cleanse(session, sizeof(*session));
	free(session);
}

/* Holds the lock; true: the caller is to free it. */
static bool
drop_reference(Session *session)
{
	return --session->references == 0;
}

/* Takes it from the list, and with that a reference. Holds the lock. */
static bool
unlist(Session *session)
{
	if (session->closed)
		return false;
	session->closed = true;
	session_count--;
	LIST_REMOVE(session, link);
	return drop_reference(session);
}

void
session_release(Session *session)
{
	bool last;

	pthread_mutex_lock(&lock);
	session->used = clock_ms();
	last = drop_reference(session);
	pthread_mutex_unlock(&lock);
	if (last)
		free_session(session);
}

void
session_close(Session *session)
{
	pthread_mutex_lock(&lock);
	unlist(session); /* the caller's reference remains */
	pthread_mutex_unlock(&lock);
}

void
session_init(void)
{
	gate_init(&signing_in, SIGN_INS_AT_ONCE, SIGN_INS_WAITING);
}

void
session_finish(void)
{
	Session *session;

	while ((session = LIST_FIRST(&sessions)) != NULL)
	{
		if (unlist(session))
			free_session(session);
	}
}

/* Ends those that have been idle, or last, for too long. One that nobody uses, to be freed; NULL: no more. */
static Session *
take_expired(void)
{
	Session *session;
	int64_t now = clock_ms();

	LIST_FOREACH(session, &sessions, link)
	{
		/* Only the list's reference: nobody is using it. */
		bool idle = session->references == 1 && now - session->used >= config.session_idle;

		/* Whoever never stops asking has it no longer than others (and it stays while we look). */
		if ((idle || now - session->opened >= LIFETIME) && unlist(session))
			return session;
	}
	return NULL;
}

/* A task, while there are sessions. */
static void
expire_sessions(void *unused)
{
	(void) unused;
	pthread_mutex_lock(&lock);
	while (!LIST_EMPTY(&sessions))
	{
		Session *session;

		while ((session = take_expired()) != NULL)
		{
			pthread_mutex_unlock(&lock);
			free_session(session);
			pthread_mutex_lock(&lock);
		}
		pthread_mutex_unlock(&lock);
		task_wait(-1, clock_ms() + EXPIRY_INTERVAL);
		pthread_mutex_lock(&lock);
	}
	expiring = false;
	pthread_mutex_unlock(&lock);
}

/* ---- signing in ---- */

typedef struct Opening
{
	const char *role;
	const char *password;
	PGconn *connection;
	bool member; /* of those who may use the dashboard */
	bool admin;
	char error[DATABASE_ERROR_SIZE];
} Opening;

/* Times as the API has them; no waiting for locks behind a migration. */
static const char settings_sql[] =
	"SET statement_timeout = '" STATEMENT_TIMEOUT "'; SET lock_timeout = '2s';"
	" SET idle_in_transaction_session_timeout = '10s'; SET TimeZone = 'UTC';"
	" SET search_path = pg_catalog; SET DateStyle = 'ISO'";

static const char member_sql[] = "SELECT pg_catalog.pg_has_role('regpilot_admin', 'USAGE'),"
								 " pg_catalog.pg_has_role('regpilot_admin', 'USAGE') OR"
								 " pg_catalog.pg_has_role('regpilot_reader', 'USAGE')";

/* In a thread: names are looked up, and a proof of the password is computed. */
static void
open_connection(void *argument)
{
	Opening *opening = argument;
	int64_t deadline = clock_ms() + SIGN_IN_TIMEOUT;
	PGresult *result;

	opening->connection =
		database_sign_in(config.database, opening->role, opening->password, "regpilot dashboard",
						 settings_sql, deadline, opening->error);
	if (opening->connection == NULL)
		return;
	result = database_query(opening->connection, member_sql, deadline, opening->error, NULL);
	if (result != NULL)
	{
		opening->admin = PQgetvalue(result, 0, 0)[0] == 't';
		opening->member = PQgetvalue(result, 0, 1)[0] == 't';
	}
	PQclear(result);
	if (!opening->member)
	{
		PQfinish(opening->connection);
		opening->connection = NULL;
		if (result != NULL)
			snprintf(opening->error, sizeof(opening->error),
					 "the role is a member of neither regpilot_reader nor regpilot_admin");
	}
}

static bool
make_token(char token[SESSION_TOKEN_SIZE])
{
	unsigned char bytes[(SESSION_TOKEN_SIZE - 1) / 2];

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return false;
	hex_encode(bytes, sizeof(bytes), token);
	OPENSSL_cleanse(bytes, sizeof(bytes));
	return true;
}

/* Whether there is room for one more session. Holds the lock. */
static bool
has_room(void)
{
	return session_count < config.max_sessions;
}

/* Makes a session of the connection, which it takes over. */
static SignIn
make_session(const Opening *opening, Session **made)
{
	Session *session = calloc(1, sizeof(Session));
	Task *expiry = NULL;
	bool room;

	if (session == NULL || !make_token(session->token))
	{
		free(session);
		PQfinish(opening->connection);
		return SIGN_IN_UNAVAILABLE;
	}
	snprintf(session->role, sizeof(session->role), "%s", opening->role);
	session->admin = opening->admin;
	session->connection = opening->connection;
	gate_init(&session->gate, 1, WAITING_MAX);
	session->opened = session->used = clock_ms();
	session->references = 2; /* the list's and the caller's */

	pthread_mutex_lock(&lock);
	room = has_room();
	if (room)
	{
		session_count++;
		LIST_INSERT_HEAD(&sessions, session, link);
		if (!expiring)
			expiry = task_create_here(expire_sessions, NULL);
		expiring = expiring || expiry != NULL;
	}
	pthread_mutex_unlock(&lock);
	if (expiry != NULL)
		task_wake(expiry);
	if (!room)
	{
		free_session(session);
		return SIGN_IN_FULL;
	}
	*made = session;
	return SIGN_IN_DONE;
}

/* Connects, when it is its turn. SIGN_IN_DONE: there is a connection. */
static SignIn
connect_in_turn(Opening *opening, const char *address, int *retry_after)
{
	bool room;

	if (!gate_enter(&signing_in, clock_ms() + SIGN_IN_TIMEOUT))
		return SIGN_IN_FULL;
	pthread_mutex_lock(&lock);
	room = has_room();
	pthread_mutex_unlock(&lock);
	if (room)
		*retry_after = throttle(opening->role, address);
	if (room && *retry_after == 0)
		task_call(open_connection, opening);
	if (opening->connection != NULL)
		forgive(opening->role, address, true);
	gate_leave(&signing_in);

	if (!room)
		return SIGN_IN_FULL;
	if (*retry_after > 0)
		return SIGN_IN_THROTTLED;
	if (opening->connection != NULL)
		return SIGN_IN_DONE;
	if (authorizer_works())
		return SIGN_IN_FAILED;
	forgive(opening->role, address, false);
	return SIGN_IN_UNAVAILABLE;
}

SignIn
session_open(const char *role, const char *password, const char *address, Session **session,
			 int *retry_after)
{
	Opening opening = {.role = role, .password = password};
	size_t role_length = strlen(role);
	size_t password_length = strlen(password);
	int64_t begun = clock_ms();
	char network[ADDRESS_SIZE];
	SignIn outcome;

	if (role_length == 0 || role_length > ROLE_MAX || password_length == 0 ||
		password_length > PASSWORD_MAX)
		return SIGN_IN_FAILED;
	find_network(address, network);
	outcome = connect_in_turn(&opening, network, retry_after);
	if (outcome == SIGN_IN_DONE)
	{
		sign_ins++;
		outcome = make_session(&opening, session);
	}
	else if (outcome == SIGN_IN_FAILED)
	{
		sign_ins_failed++;
		/* Not the role: a password may have been typed in its place. */
		log_line("a sign-in from %s failed", address);
		task_wait(-1, begun + FAILURE_DELAY);
	}
	return outcome;
}

void
session_metrics(Buffer *out)
{
	int count;

	pthread_mutex_lock(&lock);
	count = session_count;
	pthread_mutex_unlock(&lock);
	metrics_single(out, "regpilot_sessions", "gauge", "Sessions of the dashboard.", count);
	metrics_single(out, "regpilot_sessions_max", "gauge", "Sessions that there may be.",
				   config.max_sessions);
	metrics_head(out, "regpilot_sign_ins_total", "counter",
				 "Attempts to sign in at the dashboard, but for those that came too soon.");
	buffer_printf(out,
				  "regpilot_sign_ins_total{result=\"done\"} %lld\n"
				  "regpilot_sign_ins_total{result=\"failed\"} %lld\n",
				  (long long) sign_ins, (long long) sign_ins_failed);
}

/* ---- using one ---- */

Session *
session_find(const char *token, size_t length)
{
	Session *found = NULL;
	Session *session;

	if (length != SESSION_TOKEN_SIZE - 1)
		return NULL;
	pthread_mutex_lock(&lock);
	LIST_FOREACH(session, &sessions, link)
	{
		if (CRYPTO_memcmp(session->token, token, length) == 0)
			found = session;
	}
	if (found != NULL)
		found->references++;
	pthread_mutex_unlock(&lock);
	return found;
}

const char *
session_token(const Session *session)
{
	return session->token;
}

const char *
session_role(const Session *session)
{
	return session->role;
}

bool
session_is_admin(const Session *session)
{
	return session->admin;
}

void
session_run(Session *session, const char *sql, int count, const char *const *values,
			QueryResult *result)
{
	int64_t begun = clock_ms();

	*result = (QueryResult){.outcome = QUERY_BUSY};
	if (!gate_enter(&session->gate, begun + TURN_TIMEOUT))
		return;
	result->outcome = QUERY_LOST;
	if (database_alive(session->connection))
		query_run(session->connection, sql, count, values, begun + PATIENCE, result);
	if (result->outcome == QUERY_LOST)
		session_close(session);
	gate_leave(&session->gate);
}
