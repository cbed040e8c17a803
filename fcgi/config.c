/*
 * config.c
 *	  The settings, read from flags and the environment once, at the start.
 */
#include "config.h"
#include "log.h"

#include <arpa/inet.h>
#include <ctype.h>
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
variable(const char *name)
{
	const char *value = getenv(name);

	return value != NULL && value[0] != '\0' ? value : NULL;
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
check_listen(const char *value)
{
	config.listen = value;
	if (value == NULL)
		return true;
	if (strncmp(value, "unix:", 5) == 0)
		return parse_unix_address(value + 5);
	return parse_internet_address(value);
}

static bool
check_database(const char *value)
{
	config.database = value != NULL ? value : "";
	return true; /* authorizer_init() looks into it */
}

static bool
check_ca_file(const char *value)
{
	config.ca_file = value;
	if (value == NULL || access(value, R_OK) == 0)
		return true;
	log_line("REGPILOT_CA_FILE: cannot read \"%s\": %s", value, strerror(errno));
	return false;
}

static bool
check_secrets_dir(const char *value)
{
	struct stat status;

	config.secrets_dir = value;
	if (value == NULL || (stat(value, &status) == 0 && S_ISDIR(status.st_mode)))
		return true;
	log_line("REGPILOT_SECRETS_DIR: \"%s\" is not a directory", value);
	return false;
}

static bool
check_log_requests(const char *value)
{
	config.log_requests = value == NULL || strcmp(value, "on") == 0;
	if (config.log_requests || strcmp(value, "off") == 0)
		return true;
	log_line("REGPILOT_LOG_REQUESTS must be on or off, not \"%s\"", value);
	return false;
}

typedef struct Setting
{
	const char *name; /* of the variable */
	const char *help; /* lines after the first are indented by config_print_help() */

	/* either: takes and checks the value, NULL where none is given */
	bool (*check)(const char *value);

	/* or: a number within bounds */
	int *number;
	int minimum;
	int maximum;
	int fallback;
} Setting;

#define MINUTES 60000
#define HOURS (60 * MINUTES)

static const Setting settings[] = {
	{"REGPILOT_LISTEN",
	 "unix:/path, 127.0.0.1:PORT or [::1]:PORT\n"
	 "(default: descriptor 0 is the listening socket)",
	 .check = check_listen},
	{"REGPILOT_DATABASE", "libpq connection string (default: the PG* variables)",
	 .check = check_database},
	{"REGPILOT_DATABASE_TIMEOUT", "ms to wait for a verdict", NULL, &config.database_timeout, 1,
	 10 * MINUTES, 1500},
	{"REGPILOT_THREADS", "threads that serve (0: one for each processor)", NULL, &config.threads, 0,
	 1000, 0},
	{"REGPILOT_MAX_CONNECTIONS", "connections of the web server at once", NULL,
	 &config.max_connections, 1, 100000, 10000},
	{"REGPILOT_MAX_STREAMS", "answers relayed at once; more are refused", NULL, &config.max_streams,
	 1, 100000, 100000},
	{"REGPILOT_MAX_SESSIONS", "people signed in at the dashboard", NULL, &config.max_sessions, 0,
	 1000, 50},
	{"REGPILOT_SESSION_IDLE", "ms until one who does nothing is signed out", NULL,
	 &config.session_idle, 1000, 24 * HOURS, 30 * MINUTES},
	{"REGPILOT_MAX_BODY", "bytes of a request's body", NULL, &config.max_body, 1,
	 1024 * 1024 * 1024, 10 * 1024 * 1024},
	{"REGPILOT_CONNECT_TIMEOUT", "ms to connect to an upstream", NULL, &config.connect_timeout, 1,
	 10 * MINUTES, 5000},
	{"REGPILOT_UPSTREAM_TIMEOUT", "ms of silence from an upstream", NULL, &config.upstream_timeout,
	 1, HOURS, 2 * MINUTES},
	{"REGPILOT_MAX_DURATION", "ms that a call of an upstream may take in all", NULL,
	 &config.max_duration, 1, 24 * HOURS, 10 * MINUTES},
	{"REGPILOT_PING_INTERVAL", "ms of silence on a stream before a comment is sent", NULL,
	 &config.ping_interval, 1, HOURS, 15000},
	{"REGPILOT_SHUTDOWN_GRACE", "ms that running answers get after SIGTERM or SIGHUP", NULL,
	 &config.shutdown_grace, 0, HOURS, 30000},
	{"REGPILOT_LOG_REQUESTS", "on: a line of log for each request; off: none (default: on)",
	 .check = check_log_requests},
	{"REGPILOT_CA_FILE", "PEM file of CAs for upstreams (default: the system's)",
	 .check = check_ca_file},
	{"REGPILOT_SECRETS_DIR", "directory with a file for each upstream's secret",
	 .check = check_secrets_dir},
};

#define SETTINGS (sizeof(settings) / sizeof(settings[0]))

/* The setting's flag without the dashes before it: its name in lower case, words joined by '-'. */
static void
flag_name(const Setting *setting, char flag[32])
{
	const char *c = setting->name + strlen("REGPILOT_");

	for (; *c != '\0'; c++)
		*flag++ = *c == '_' ? '-' : (char) tolower(*c);
	*flag = '\0';
}

/* Takes the flags, --name=value or --name value; false after a message. */
static bool
read_flags(char **argv, const char *values[SETTINGS])
{
	while (*++argv != NULL)
	{
		size_t length = strcspn(*argv, "=");
		size_t i;

		for (i = 0; i < SETTINGS; i++)
		{
			char flag[32];

			flag_name(&settings[i], flag);
			if (strncmp(*argv, "--", 2) == 0 && length - 2 == strlen(flag) &&
				strncmp(*argv + 2, flag, length - 2) == 0)
				break;
		}
		if (i == SETTINGS)
		{
			log_line("there is no option \"%.*s\"; see --help", (int) length, *argv);
			return false;
		}
		if ((*argv)[length] == '=')
			values[i] = *argv + length + 1;
		else if (argv[1] != NULL)
			values[i] = *++argv;
		else
		{
			log_line("option \"%s\" needs a value", *argv);
			return false;
		}
	}
	return true;
}

static bool
read_number(const Setting *setting, const char *value)
{
	char *end;
	long parsed;

	*setting->number = setting->fallback;
	if (value == NULL)
		return true;

	errno = 0;
	parsed = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || parsed < setting->minimum ||
		parsed > setting->maximum)
	{
		log_line("%s must be a number from %d to %d, not \"%s\"", setting->name, setting->minimum,
				 setting->maximum, value);
		return false;
	}
	*setting->number = (int) parsed;
	return true;
}

bool
config_read(char **argv)
{
	const char *values[SETTINGS] = {NULL};

	if (!read_flags(argv, values))
		return false;
	for (size_t i = 0; i < SETTINGS; i++)
	{
		const char *value = values[i] != NULL ? values[i] : variable(settings[i].name);

		if (!(settings[i].check != NULL ? settings[i].check(value)
										: read_number(&settings[i], value)))
			return false;
	}
	return true;
}

void
config_print_help(FILE *out)
{
	for (size_t i = 0; i < SETTINGS; i++)
	{
		const Setting *setting = &settings[i];
		const char *line = setting->help;
		const char *end;
		char flag[32];

		flag_name(setting, flag);
		fprintf(out, "  --%-20s %-26s ", flag, setting->name);
		for (; (end = strchr(line, '\n')) != NULL; line = end + 1)
			fprintf(out, "%.*s\n%52s", (int) (end - line), line, "");
		if (setting->check == NULL)
			fprintf(out, "%s (%d)\n", line, setting->fallback);
		else
			fprintf(out, "%s\n", line);
	}
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

static bool
find_secret(const char *name, char secret[SECRET_SIZE])
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

	value = variable(name);
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

char *
config_secret(const char *name)
{
	char secret[SECRET_SIZE];
	char *copy = find_secret(name, secret) ? strdup(secret) : NULL;

	explicit_bzero(secret, sizeof(secret));
	return copy;
}

void
config_forget_secret(char *secret)
{
	if (secret != NULL)
		explicit_bzero(secret, strlen(secret));
	free(secret);
}
