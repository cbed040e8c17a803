/*
 * config.h
 *	  The settings, read from flags and the environment once, at the start.
 *
 * A setting REGPILOT_MAX_BODY is also the flag --max-body, which wins. Neither
 * holds a provider's secret: see config_secret().
 */
#ifndef REGPILOT_CONFIG_H
#define REGPILOT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>

typedef struct Config
{
	const char *listen;				 /* NULL: descriptor 0 is the socket */
	struct sockaddr_storage address; /* what it means */
	socklen_t address_length;
	const char *database;	 /* libpq conninfo */
	int threads;			 /* that run tasks */
	int max_connections;	 /* of the web server at once */
	int kept_upstreams;		 /* idle connections to upstreams that a thread keeps */
	int max_streams;		 /* answers relayed at once */
	int max_sessions;		 /* of the dashboard */
	int session_idle;		 /* ms after which one ends */
	int max_body;			 /* bytes */
	int database_timeout;	 /* ms */
	int connect_timeout;	 /* ms */
	int upstream_timeout;	 /* ms of silence */
	int max_duration;		 /* ms of a whole call of an upstream */
	int ping_interval;		 /* ms of silence on a stream, between pings to the client */
	int shutdown_grace;		 /* ms */
	bool log_requests;		 /* a line for each */
	const char *ca_file;	 /* NULL: the system's */
	const char *secrets_dir; /* NULL: none */
} Config;

/* Does not change once server_init, which bounds max_connections, has returned. */
extern Config config;

/*
 * Reads the environment and the flags behind argv[0]. False, after a message,
 * when a value is bad or a flag unknown. Strings stay where they are.
 */
extern bool config_read(char **argv) __attribute__((warn_unused_result));

/* Prints a line or two for each setting, for --help. */
extern void config_print_help(FILE *out);

/* Bytes that the credential for an upstream may have, with a NUL. */
#define SECRET_SIZE 4096

/*
 * Fetches the credential that an upstream's secret_name stands for, from the
 * environment or else from its file: anew each time, so that a file can be
 * replaced while we run. The caller gives it to config_forget_secret(). NULL, after
 * a message, when there is none.
 */
extern char *config_secret(const char *name) __attribute__((warn_unused_result));

/* Overwrites and frees it; NULL: nothing. */
extern void config_forget_secret(char *secret);

#endif
