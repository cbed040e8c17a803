/*
 * config.h
 *	  The settings, read from the environment once, at the start.
 */
#ifndef REGPILOT_CONFIG_H
#define REGPILOT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

typedef struct Config
{
	const char *listen;				 /* REGPILOT_LISTEN; NULL: descriptor 0 is the socket */
	struct sockaddr_storage address; /* what it means */
	socklen_t address_length;
	const char *database;	 /* libpq conninfo */
	int max_threads;		 /* connections served at once */
	int max_body;			 /* bytes */
	int database_timeout;	 /* ms */
	int connect_timeout;	 /* ms */
	int upstream_timeout;	 /* ms of silence */
	int shutdown_grace;		 /* ms */
	const char *ca_file;	 /* NULL: the system's */
	const char *secrets_dir; /* NULL: none */
} Config;

/* Does not change once config_read has returned. */
extern Config config;

/* False, after a message, when a value is bad. */
extern bool config_read(void) __attribute__((warn_unused_result));

/* Bytes that the credential for an upstream may have, with a NUL. */
#define SECRET_SIZE 4096

/*
 * Fetches the credential that an upstream's secret_name stands for, from the
 * environment or else from its file: anew each time, so that a file can be
 * replaced while we run. False, after a message, when there is none.
 */
extern bool config_secret(const char *name, char secret[SECRET_SIZE])
	__attribute__((warn_unused_result));

#endif
