/*
 * config.c
 *	  The settings, read from the environment once, at the start.
 */
#include "config.h"
#include "log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

Config config;

/* The variable's value; an empty one counts as unset. */
static const char *
setting(const char *name)
{
	const char *value = getenv(name);

	return value != NULL && value[0] != '\0' ? value : NULL;
}

static bool
read_number(const char *name, int minimum, int maximum, int fallback, int *number)
{
	const char *value = setting(name);
	char *end;
	long parsed;

	*number = fallback;
	if (value == NULL)
		return true;

	errno = 0;
	parsed = strtol(value, &end, 10);
	if (errno != 0 || *end != '\0' || parsed < minimum || parsed > maximum)
	{
		log_line("%s must be a number from %d to %d, not \"%s\"", name, minimum, maximum, value);
		return false;
	}
	*number = (int) parsed;
	return true;
}

static bool
parse_unix_address(const char *path)
{
	struct sockaddr_un *address = (struct sockaddr_un *) &config.address;

	if (path[0] != '/' || strlen(path) >= sizeof(address->sun_path))
	{
		log_line(
			"REGPILOT_LISTEN: the path of a Unix socket must be absolute, of at most %zu bytes",
			sizeof(address->sun_path) - 1);
		return false;
	}
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path, path);
	config.address_length = sizeof(*address);
	return true;
}

/*
 * Reads 127.0.0.1:9000 or [::1]:9000. Who can reach the socket speaks with the
 * web server's voice, so only loopback addresses will do.
 */
static bool
parse_internet_address(const char *value)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *) &config.address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *) &config.address;
	const char *colon = strrchr(value, ':');
	char host[INET6_ADDRSTRLEN + 2];
	size_t length;
	char *end;
	long port;

	if (colon == NULL || (length = (size_t) (colon - value)) >= sizeof(host))
		goto malformed;
	memcpy(host, value, length);
	host[length] = '\0';
	port = strtol(colon + 1, &end, 10);
	if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || port < 1 || port > 65535)
		goto malformed;

	if (host[0] == '[' && length > 2 && host[length - 1] == ']')
	{
		host[length - 1] = '\0';
		if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) != 1)
			goto malformed;
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t) port);
		config.address_length = sizeof(*v6);
		if (IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr))
			return true;
	}
	else
	{
		if (inet_pton(AF_INET, host, &v4->sin_addr) != 1)
			goto malformed;
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t) port);
		config.address_length = sizeof(*v4);
		if (ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET)
			return true;
	}
	log_line("REGPILOT_LISTEN: \"%s\" is not a loopback address", value);
	return false;

malformed:
	log_line("REGPILOT_LISTEN must be unix:/path, 127.0.0.1:PORT or [::1]:PORT, not \"%s\"", value);
	return false;
}

static bool
read_listen(void)
{
	config.listen = setting("REGPILOT_LISTEN");
	if (config.listen == NULL)
		return true;
	if (strncmp(config.listen, "unix:", 5) == 0)
		return parse_unix_address(config.listen + 5);
	return parse_internet_address(config.listen);
}

static bool
read_paths(void)
{
	struct stat status;

	config.ca_file = setting("REGPILOT_CA_FILE");
	if (config.ca_file != NULL && access(config.ca_file, R_OK) != 0)
	{
		log_line("REGPILOT_CA_FILE: cannot read \"%s\": %s", config.ca_file, strerror(errno));
		return false;
	}
	config.secrets_dir = setting("REGPILOT_SECRETS_DIR");
	if (config.secrets_dir != NULL &&
		(stat(config.secrets_dir, &status) != 0 || !S_ISDIR(status.st_mode)))
	{
		log_line("REGPILOT_SECRETS_DIR: \"%s\" is not a directory", config.secrets_dir);
		return false;
	}
	return true;
}

bool
config_read(void)
{
	config.database = setting("REGPILOT_DATABASE");
	if (config.database == NULL)
		config.database = "";

	return read_listen() && read_paths() &&
		   read_number("REGPILOT_MAX_THREADS", 1, 100000, 256, &config.max_threads) &&
		   read_number("REGPILOT_MAX_BODY", 1, 1024 * 1024 * 1024, 10 * 1024 * 1024,
					   &config.max_body) &&
		   read_number("REGPILOT_DATABASE_TIMEOUT", 1, 600000, 1500, &config.database_timeout) &&
		   read_number("REGPILOT_CONNECT_TIMEOUT", 1, 600000, 5000, &config.connect_timeout) &&
		   read_number("REGPILOT_UPSTREAM_TIMEOUT", 1, 3600000, 120000, &config.upstream_timeout) &&
		   read_number("REGPILOT_SHUTDOWN_GRACE", 0, 3600000, 30000, &config.shutdown_grace);
}

/* Reads a small file, without the newlines at its end. */
static bool
read_secret_file(const char *name, char secret[SECRET_SIZE])
{
	char path[PATH_MAX];
	int fd;
	ssize_t length;

	if (config.secrets_dir == NULL ||
		snprintf(path, sizeof(path), "%s/%s", config.secrets_dir, name) >= (int) sizeof(path))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	length = read(fd, secret, SECRET_SIZE);
	close(fd);
	if (length < 0 || length >= SECRET_SIZE)
		return false;
	while (length > 0 && (secret[length - 1] == '\n' || secret[length - 1] == '\r'))
		length--;
	secret[length] = '\0';
	return true;
}

bool
config_secret(const char *name, char secret[SECRET_SIZE])
{
	const char *value;

	/*
	 * The name comes from a table: it must not lead out of the directory (the
	 * table's CHECK has the same rule), nor to what is no upstream's, our own
	 * settings and libpq's.
	 */
	if (name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] != '\0' ||
		strncmp(name, "REGPILOT_", 9) == 0 || strncmp(name, "PG", 2) == 0)
	{
		log_line("secret name \"%s\" is not allowed", name);
		return false;
	}

	value = setting(name);
	if (value != NULL)
	{
		if (strlen(value) >= SECRET_SIZE)
			secret[0] = '\0';
		else
			strcpy(secret, value);
	}
	else if (!read_secret_file(name, secret))
	{
		log_line("secret \"%s\" is neither in the environment nor in REGPILOT_SECRETS_DIR", name);
		return false;
	}

	/* It becomes part of a header. */
	if (secret[0] == '\0')
		goto unusable;
	for (const char *c = secret; *c != '\0'; c++)
	{
		if (*c < ' ' || *c > '~')
			goto unusable;
	}
	return true;

unusable:
	log_line("secret \"%s\" is empty, too long or not printable ASCII", name);
	return false;
}
